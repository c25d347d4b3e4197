//! Where the memory of a guest is in a process.

use std::ops::Range;

use super::PAGE_SIZE;

/// A part of a guest's memory that is one range of addresses in its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Address of its first byte in the process.
    pub address: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// Offset of its first byte in the guest's memory, as it is in a base.
    pub offset: u64,
}

/// Regions are not one whole memory.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RegionError {
    /// An address, a length or an offset is no whole number of pages.
    #[error("the region at {address:#x} is empty or not made of whole pages")]
    Uneven {
        /// Address of the region.
        address: u64,
    },
    /// Two regions share addresses or a part of the memory, or a part is in none.
    #[error("the region at {address:#x} does not begin where the one before it ends, or overlaps")]
    Misplaced {
        /// Address of the region.
        address: u64,
    },
    /// All of them are more or less than the memory.
    #[error("the regions have {found} bytes instead of {expected}")]
    Size {
        /// Bytes of all regions.
        found: u64,
        /// Bytes of the memory.
        expected: u64,
    },
}

impl Region {
    /// The pages of the memory that are in it.
    pub fn pages(&self) -> Range<u64> {
        let page_size = PAGE_SIZE as u64;
        self.offset / page_size..(self.offset + self.bytes) / page_size
    }

    /// Sorts regions by what is in them, once they are known to be one memory of `memory_bytes`.
    ///
    /// # Errors
    ///
    /// [`RegionError`] unless each byte of the memory is in one region, and no address is in two.
    pub fn sorted(mut regions: Vec<Self>, memory_bytes: u64) -> Result<Vec<Self>, RegionError> {
        let uneven = |number: u64| !number.is_multiple_of(PAGE_SIZE as u64);
        for Self { address, bytes, offset } in regions.iter().copied() {
            let overflows =
                address.checked_add(bytes).is_none() || offset.checked_add(bytes).is_none();
            if bytes == 0 || overflows || [address, bytes, offset].into_iter().any(uneven) {
                return Err(RegionError::Uneven { address });
            }
        }
        regions.sort_unstable_by_key(|region| region.address);
        for pair in regions.windows(2) {
            if pair[0].address + pair[0].bytes > pair[1].address {
                return Err(RegionError::Misplaced { address: pair[1].address });
            }
        }
        regions.sort_unstable_by_key(|region| region.offset);
        let mut end = 0;
        for region in &regions {
            if region.offset != end {
                return Err(RegionError::Misplaced { address: region.address });
            }
            end += region.bytes;
        }
        match end == memory_bytes {
            true => Ok(regions),
            false => Err(RegionError::Size { found: end, expected: memory_bytes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn region(address: u64, bytes: u64, offset: u64) -> Region {
        Region { address, bytes, offset }
    }

    #[test]
    fn regions_that_are_one_memory_are_sorted() {
        let (low, high) = (region(8 * MIB, 2 * MIB, 0), region(4 * MIB, MIB, 2 * MIB));
        assert_eq!(Region::sorted(vec![high, low], 3 * MIB), Ok(vec![low, high]));
        assert_eq!(high.pages(), 512..768);
    }

    #[test]
    fn regions_that_are_not_one_memory_are_refused() {
        let refused = |regions: &[Region]| Region::sorted(regions.to_vec(), 2 * MIB).unwrap_err();
        let size = |found| RegionError::Size { found, expected: 2 * MIB };
        assert_eq!(refused(&[]), size(0));
        assert_eq!(refused(&[region(MIB, MIB, 0)]), size(MIB));
        assert_eq!(refused(&[region(MIB, 3 * MIB, 0)]), size(3 * MIB));
        for uneven in [
            region(MIB + 1, 2 * MIB, 0),
            region(MIB, 2 * MIB + 1, 0),
            region(MIB, 2 * MIB, 1),
            region(MIB, 0, 0),
            region(u64::MAX - 4095, 2 * MIB, 0),
            region(MIB, 2 * MIB, u64::MAX - 4095),
        ] {
            assert_eq!(refused(&[uneven]), RegionError::Uneven { address: uneven.address });
        }
        let misplaced = |address| RegionError::Misplaced { address };
        let one = region(4 * MIB, MIB, 0);
        assert_eq!(refused(&[one, region(4 * MIB, MIB, MIB)]), misplaced(4 * MIB));
        assert_eq!(refused(&[one, region(8 * MIB, MIB, 0)]), misplaced(8 * MIB));
        assert_eq!(refused(&[one, region(8 * MIB, MIB, 2 * MIB)]), misplaced(8 * MIB));
    }
}
