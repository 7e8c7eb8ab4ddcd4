//! Who can go on with an answer: whoever has the very same file, under whatever name.

use super::*;

#[test]
fn a_twin_is_found_in_a_house_full_of_other_files_with_the_same_name() {
    let now = start();
    let of_file = |file: &str, id: &str| {
        let mut tier = tier(Fast);
        if let Some(model) = &mut tier.model {
            (model.file_sha256, model.id) = (file.to_owned(), id.to_owned());
        }
        tier
    };
    let others = (0..40).map(|at| report(&format!("other{at}"), 1, vec![of_file("other", "m")]));
    let mut all: Vec<Report> = others.collect();
    all.push(report("twin", 1, vec![of_file("file", "m")]));
    all.push(report("named", 1, vec![of_file("file", "another-name")]));
    all.push(report("unknown", 1, vec![of_file("", "m")]));
    let router = router(all, now);
    let twins = |file: &str| Target::Twin {
        tier: Fast,
        file_sha256: file.to_owned(),
    };
    let mut found = steps(&plan(&router, &twins("file"), now));
    found.sort_unstable();
    assert_eq!(found, ["node_named/fast", "node_twin/fast"]);
    assert!(steps(&plan(&router, &twins(""), now)).is_empty());
}
