//! What an administrator can do, by what it is done to. Does nothing itself.

/// What an administrator can do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Act {
    /// The description of all this.
    Describe,
    /// The proxy at a glance.
    Status,
    /// The route that a request would take.
    Route,
    /// Plans of the settings.
    PlanList,
    /// A copy of the store.
    Backup,
    /// API keys.
    Key(KeyAct),
    /// People.
    User(UserAct),
    /// The deny list.
    Denial(DenialAct),
    /// Join links.
    Invite(InviteAct),
    /// Nodes.
    Node(NodeAct),
    /// Usage and the audit log.
    Book(BookAct),
}

/// What happens to API keys.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeyAct {
    /// All of them.
    List,
    /// A new key.
    Create,
    /// One key.
    Show,
    /// Another name, scope or limit.
    Patch,
    /// The end of a key.
    Revoke,
    /// A new secret.
    Rotate,
}

/// What happens to people.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UserAct {
    /// All of them.
    List,
    /// One person.
    Show,
    /// Another plan, other limits, closed or open.
    Patch,
    /// Everything that is kept about a person.
    Export,
    /// Forgets a person.
    Erase,
}

/// What happens to the deny list.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DenialAct {
    /// The deny list.
    List,
    /// Another line of it.
    Put,
    /// One line less.
    Remove,
}

/// What happens to join links.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum InviteAct {
    /// Join tokens.
    List,
    /// A new join link.
    Create,
    /// The end of a join link.
    End,
}

/// What happens to nodes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NodeAct {
    /// Nodes.
    List,
    /// One node.
    Show,
    /// A node that waits comes in.
    Approve,
    /// No new work for a node.
    Drain,
    /// Work again.
    Undrain,
    /// The end of a node.
    Revoke,
}

/// What is read in the books.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BookAct {
    /// Sums of usage.
    Usage,
    /// Requests one by one.
    Records,
    /// The audit log.
    AuditList,
    /// Whether it is whole.
    AuditVerify,
}
