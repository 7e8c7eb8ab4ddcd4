//! A defect of the stack that this one replaces, as far as it concerns what is held: a test with its name, for each store.

use config::ids::UserId;
use config::settings::plan::Plan;
use policy::identity::Principal;
use policy::plan::stored_counters;

use super::counting::{reservation, settlement, tenant};
use super::{each_store, limits, now_ms};

/// 500 MB a person were promised and never looked at.
#[tokio::test]
async fn seed_defect_16_more_than_500_mb_a_person_are_never_held() {
    each_store(async |store| {
        let ada = Principal::person(UserId::new("ada"), Plan::default());
        let wanting = |bytes| reservation(&stored_counters(&ada, &limits(), bytes));
        let kept = async |bytes: u64| {
            let order = wanting(bytes);
            let decision = store.reserve(&order, now_ms()).await.unwrap();
            if decision.is_admitted() {
                let spent = vec![bytes; order.counters.len()];
                let kept = settlement(&order, &spent);
                store.settle(&kept, now_ms()).await.unwrap();
            }
            decision.is_admitted()
        };
        assert!(kept(300_000_000).await);
        assert!(!kept(200_000_001).await, "one byte too many");
        assert!(kept(200_000_000).await, "to the last byte");
        assert!(!kept(1).await);
        let deleted = wanting(300_000_000).counters;
        store.release(&tenant(), &deleted, now_ms()).await.unwrap();
        assert!(kept(1).await, "what is deleted makes room");
    })
    .await;
}
