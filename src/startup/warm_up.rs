//! What `nestbox image build` does beyond the image: boots it once and freezes it.

use anyhow::Result;

use super::{choose_hypervisor, data_dir, host_settings};
use crate::config::Config;
use crate::domain::name::TemplateName;
use crate::domain::shape::Shape;
use crate::vmm::host::HostMachines;
use crate::vmm::image::ImageStore;
use crate::vmm::machine::Machines;

/// Makes the warm snapshot of an image in the default shape, so that the first create need not. What
/// it returns says why it cannot be made here and now.
///
/// # Errors
///
/// If the image cannot be booted.
pub async fn warm_up(config: Config, image: TemplateName) -> Result<Option<String>> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(Some("only root can start VMs".to_owned()));
    }
    let Some(_lock) = data_dir::claim(&config.data_dir)? else {
        let dir = config.data_dir.display();
        return Ok(Some(format!("a daemon uses {dir}")));
    };
    let images = ImageStore::open(config.image_dir());
    let choice = match choose_hypervisor(&config, &images).await {
        Ok(choice) => choice,
        Err(error) => return Ok(Some(format!("{error:#}"))),
    };
    let machines = HostMachines::start(host_settings(&config)?, choice.hypervisor, images).await?;
    let made = machines.warm_up(&image, Shape::DEFAULT).await;
    machines.shut_down().await;
    made?;
    Ok(None)
}
