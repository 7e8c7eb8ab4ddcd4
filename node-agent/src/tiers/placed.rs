//! Where a model is computed, in words for the line that says it is ready. Pure.

use config::settings::node::TierSettings;
use engine::ModelCard;

/// The kind of device that has most of it.
pub(super) fn backend(card: &ModelCard) -> &'static str {
    const KINDS: [(&str, &str); 4] = [
        ("CUDA", "cuda"),
        ("MTL", "metal"),
        ("Metal", "metal"),
        ("Vulkan", "vulkan"),
    ];
    if card.gpu_layers == 0 {
        return "cpu";
    }
    let has = |prefix: &str| {
        let mut names = card.devices.iter().map(|device| &device.name);
        names.any(|name| name.starts_with(prefix))
    };
    let found = KINDS.into_iter().find(|(prefix, _kind)| has(prefix));
    found.map_or("gpu", |(_prefix, kind)| kind)
}

/// All devices by name.
pub(super) fn devices(card: &ModelCard) -> String {
    let names = card.devices.iter().map(|device| device.name.as_str());
    names.collect::<Vec<_>>().join(", ")
}

/// Why no GPU is used, for the owner of one.
pub(super) fn why_cpu(settings: &TierSettings, card: &ModelCard) -> Option<&'static str> {
    if card.gpu_layers > 0 {
        return None;
    }
    Some(if settings.gpu_layers == Some(0) {
        "gpu_layers = 0 in the settings"
    } else if cfg!(any(feature = "cuda", feature = "metal", feature = "vulkan")) {
        "no GPU was found; is its driver installed?"
    } else {
        "built for the CPU alone; build with --features cuda, metal or vulkan for a GPU"
    })
}
