//! How many requests each user has open in this process. Counts only; the caller enters, leaves, and must leave once for each
//! time it entered.

use std::collections::HashMap;

use crate::identity::Subject;
use crate::refusal::Refusal;

/// Open requests by user. Only users with an open request are in the table, so open requests bound its size.
#[derive(Debug, Default)]
pub struct OpenRequests {
    by_subject: HashMap<Subject, u32>,
    total: u32,
}

impl OpenRequests {
    /// Counts one more, unless the user already has `limit` of them.
    pub fn enter(&mut self, subject: &Subject, limit: u32) -> Result<(), Refusal> {
        let open = self.of(subject);
        if open >= limit {
            return Err(Refusal::TooManyOpen {
                limit: u64::from(limit),
            });
        }
        self.by_subject.insert(subject.clone(), open + 1);
        self.total = self.total.saturating_add(1);
        Ok(())
    }

    /// Counts one less.
    pub fn leave(&mut self, subject: &Subject) {
        let Some(open) = self.by_subject.get_mut(subject) else {
            return;
        };
        *open = open.saturating_sub(1);
        self.total = self.total.saturating_sub(1);
        if *open == 0 {
            self.by_subject.remove(subject);
        }
    }

    /// Open requests of this user.
    pub fn of(&self, subject: &Subject) -> u32 {
        self.by_subject.get(subject).copied().unwrap_or(0)
    }

    /// Open requests of all users.
    pub const fn total(&self) -> u32 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use config::ids::UserId;

    use super::OpenRequests;
    use crate::identity::Subject;
    use crate::refusal::Refusal;

    #[test]
    fn a_user_has_so_many_open_and_leaving_makes_room() {
        let ada = Subject::of_user(&UserId::new("ada"));
        let bob = Subject::of_user(&UserId::new("bob"));
        let mut open = OpenRequests::default();
        assert_eq!(open.enter(&ada, 2), Ok(()));
        assert_eq!(open.enter(&ada, 2), Ok(()));
        assert_eq!(open.enter(&ada, 2), Err(Refusal::TooManyOpen { limit: 2 }));
        assert_eq!(open.enter(&bob, 2), Ok(()), "others are not affected");
        assert_eq!((open.total(), open.of(&ada), open.of(&bob)), (3, 2, 1));
        open.leave(&ada);
        assert_eq!(open.enter(&ada, 2), Ok(()));
    }

    #[test]
    fn nobody_stays_in_the_table_without_a_request() {
        let ada = Subject::of_user(&UserId::new("ada"));
        let mut open = OpenRequests::default();
        assert_eq!(open.enter(&ada, 1), Ok(()));
        open.leave(&ada);
        open.leave(&ada);
        assert_eq!(open.total(), 0);
        assert!(open.by_subject.is_empty());
        assert!(
            open.enter(&ada, 0).is_err(),
            "a limit of zero lets nobody in"
        );
    }
}
