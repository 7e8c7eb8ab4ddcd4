//! Which address of a name is dialled, where it has several: the first, in the order of RFC 6724, as long as that works; the next one after
//! each that no datagram came back from.

/// Counts the addresses that were tried.
#[derive(Debug, Default)]
pub(super) struct Turn {
    at: usize,
    /// The present one was dialled, and nothing was heard from it.
    is_silent: bool,
}

impl Turn {
    /// The place of the address for the next registration.
    pub(super) fn next(&mut self) -> usize {
        if std::mem::take(&mut self.is_silent) {
            self.at = self.at.wrapping_add(1);
        }
        self.at
    }

    /// A tunnel to it begins.
    pub(super) const fn dialled(&mut self) {
        self.is_silent = true;
    }

    /// It works.
    pub(super) const fn heard(&mut self) {
        self.is_silent = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_address_is_the_first_and_only_one_that_never_answered_is_left() {
        let mut turn = Turn::default();
        assert_eq!(turn.next(), 0);
        assert_eq!(
            turn.next(),
            0,
            "a registration that failed says nothing of it"
        );
        turn.dialled();
        turn.heard();
        assert_eq!(turn.next(), 0, "it worked once");
        turn.dialled();
        assert_eq!((turn.next(), turn.next()), (1, 1));
        turn.dialled();
        turn.heard();
        assert_eq!(turn.next(), 1, "what works is kept");
    }
}
