//! The kernel's command line, as far as it is about the root file system.

/// Where the root is and how to mount it.
#[derive(Debug, PartialEq, Eq)]
pub struct Cmdline {
    /// Device file.
    pub root: String,
    /// File system.
    pub fstype: String,
    /// Options of that file system.
    pub flags: Option<String>,
    /// Whether it may be written to.
    pub access: Access,
}

/// Whether the root may be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It may.
    ReadWrite,
    /// It may not.
    ReadOnly,
}

impl Cmdline {
    /// The running kernel's.
    pub fn read() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let mut found = Self {
            root: "/dev/vda".to_owned(),
            fstype: "ext4".to_owned(),
            flags: None,
            access: Access::ReadWrite,
        };
        for word in text.split_whitespace() {
            match word.split_once('=') {
                Some(("root", value)) => found.root = value.to_owned(),
                Some(("rootfstype", value)) => found.fstype = value.to_owned(),
                Some(("rootflags", value)) => found.flags = Some(value.to_owned()),
                None if word == "ro" => found.access = Access::ReadOnly,
                None if word == "rw" => found.access = Access::ReadWrite,
                Some(_) | None => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts_and_the_rest_is_not_ours() {
        let found = Cmdline::parse("console=ttyS0 root=/dev/vdb rootflags=a=b ro quiet rw\n");
        assert_eq!(found.root, "/dev/vdb");
        assert_eq!(found.flags.as_deref(), Some("a=b"));
        assert_eq!(found.access, Access::ReadWrite);
        assert_eq!(Cmdline::parse("ro").access, Access::ReadOnly);
        assert_eq!(Cmdline::parse("").root, "/dev/vda");
    }
}
