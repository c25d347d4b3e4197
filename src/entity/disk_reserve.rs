//! Room that is kept back on the disk that has the database.
//!
//! On a full disk things can only be taken away if it can be written down that they are gone. Who
//! starts the daemon keeps the room; here it is only asked for.

/// Kept-back room.
pub trait Spare: Send + Sync + 'static {
    /// Gives some of it to the disk; false if there is none left.
    fn give(&self) -> bool;

    /// Whether the disk is full. SQLite has other words for that, too, than "full".
    fn is_full(&self) -> bool;
}

/// Which room a statement may take on a full disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// None: what it writes is new, or can be done without.
    Free,
    /// That which is kept back: it writes what has become of something, or takes something away.
    Spare,
}
