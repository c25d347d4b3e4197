//! Keys that have no character, in the code points that WebDriver gives them.

pub const ARROW_RIGHT: char = '\u{E014}';
pub const END: char = '\u{E010}';
pub const ENTER: char = '\u{E007}';
pub const ESCAPE: char = '\u{E00C}';
pub const F6: char = '\u{E036}';
pub const SHIFT: char = '\u{E008}';
pub const SPACE: char = ' ';
pub const TAB: char = '\u{E004}';
