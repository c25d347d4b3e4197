//! What `nestbox image build` does beyond the image: boots it once and freezes it.

use anyhow::Result;

use super::{choose_hypervisor, claim_data_dir, host_settings};
use crate::config::Config;
use crate::domain::name::TemplateName;
use crate::domain::shape::Shape;
use crate::vmm::host::HostMachines;
use crate::vmm::image::ImageStore;
use crate::vmm::machine::Machines;

/// What came of it.
pub enum WarmUp {
    /// There is a warm snapshot of the default shape.
    Ready,
    /// It could not be made here and now, and why: the first create makes it.
    Later(String),
}

/// Makes the warm snapshot of an image in the default shape, so that the first create need not.
///
/// # Errors
///
/// If the image cannot be booted.
pub async fn warm_up(config: &Config, name: &TemplateName) -> Result<WarmUp> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(WarmUp::Later("only root can start VMs".to_owned()));
    }
    let Some(_lock) = claim_data_dir(&config.data_dir)? else {
        let dir = config.data_dir.display();
        return Ok(WarmUp::Later(format!("a daemon uses {dir}")));
    };
    let images = ImageStore::open(config.image_dir());
    let choice = match choose_hypervisor(config, &images).await {
        Ok(choice) => choice,
        Err(error) => return Ok(WarmUp::Later(format!("{error:#}"))),
    };
    let machines = HostMachines::start(host_settings(config), choice.hypervisor, images).await?;
    let made = machines.warm_up(name, Shape::DEFAULT).await;
    machines.shut_down().await;
    made?;
    Ok(WarmUp::Ready)
}
