//! What suits this machine: quantisation, context, slots, layers and tier, each with its reason, and a refusal with the numbers where nothing
//! does. Pure: the machine is an argument.

use std::fmt::Write as _;

use serde::Serialize;

use super::catalogue::{Entry, LADDER, entries};
use super::machine::Machine;
use super::memory::{Load, Need, Shape};
use super::progress::{float, size, whole};

const GIB: u64 = 1024 * 1024 * 1024;
/// Left to the system and to other programs: a tenth, and at least this.
const SPARE_MIN: u64 = GIB / 2;
/// Share of the bandwidth that decoding reaches: an estimate, made to err on the low side; `hearth-node bench` measures.
const BANDWIDTH_SHARE: f64 = 0.7;
/// Contexts below this are of no use to a chat.
const CONTEXT_USEFUL: u64 = 4_096;
const SLOTS: u64 = 4;
const KV_F16: u64 = 64;
const KV_Q8: u64 = 34;

/// Advice for one model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Advice {
    /// The model.
    pub model: String,
    /// What `hearth-node pull` takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull: Option<String>,
    /// Which quantisation.
    pub quantisation: String,
    /// Tokens of one request.
    pub context: u64,
    /// Requests at once.
    pub slots: u64,
    /// Type of the cache.
    pub kv_type: &'static str,
    /// Layers on the GPU; `None` = all.
    pub gpu_layers: Option<u64>,
    /// `fast`, `primary` or `heavy`.
    pub tier: String,
    /// Memory, by purpose.
    pub need: Need,
    /// Memory that may be used.
    pub budget_bytes: u64,
    /// About what one request gets.
    pub tokens_per_second: u64,
    /// Why.
    pub reasons: Vec<String>,
}

/// Nothing fits, with the numbers.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error, Serialize)]
#[error("{model} does not fit: it needs {} at least, and {} may be used here ({why}); {next}", size(*needed), size(*budget))]
pub struct Refusal {
    /// The model.
    pub model: String,
    /// Bytes needed in the smallest form.
    pub needed: u64,
    /// Bytes that may be used.
    pub budget: u64,
    /// How the budget came about.
    pub why: String,
    /// What to do.
    pub next: String,
}

/// What of `available` bytes models may take.
pub fn budget_of(available: u64) -> u64 {
    available.saturating_sub((available / 10).max(SPARE_MIN))
}

/// What models may take of this machine: the cards' memory if there is enough of it to matter, else RAM.
pub fn budget(machine: &Machine) -> (u64, String) {
    let (vram, ram) = (machine.vram_free(), machine.ram_available_bytes);
    if vram >= 2 * GIB {
        let spare = budget_of(vram);
        return (spare, format!("{} of video memory are free", size(vram)));
    }
    (
        budget_of(ram),
        format!("{} of memory are available", size(ram)),
    )
}

/// Advice for a file that is here.
pub fn for_file(
    name: &str,
    quantisation: &str,
    shape: &Shape,
    machine: &Machine,
) -> Result<Advice, Refusal> {
    let (budget, why) = budget(machine);
    let gpu = machine.vram_free() >= 2 * GIB;
    let mut reasons = vec![why.clone()];
    for (slots, kv_type, kv_32nds) in [
        (SLOTS, "f16", KV_F16),
        (SLOTS, "q8_0", KV_Q8),
        (1, "f16", KV_F16),
        (1, "q8_0", KV_Q8),
    ] {
        let gpu_layers = if gpu { shape.layers } else { 0 };
        let load = Load::plain(0, slots, kv_32nds, gpu_layers);
        let Some(context) = shape.longest(load, budget) else {
            continue;
        };
        let last = slots == 1 && kv_32nds == KV_Q8;
        if context < CONTEXT_USEFUL.min(shape.context_max) && !last {
            reasons.push(format!(
                "{slots} slots with a cache of {kv_type} leave {context} tokens each: too few"
            ));
            continue;
        }
        let need = shape.need(Load { context, ..load });
        reasons.push(format!(
            "{context} tokens for each of {slots} slots are the most that fit beside {} of weights (trained for {})",
            size(need.weights),
            shape.context_max
        ));
        let warned = super::choose::bits(quantisation).is_some_and(|bits| bits < 4);
        if warned {
            reasons.push(format!("warning: {quantisation} is below 4 bits, where answers get visibly worse; prefer a smaller model at Q4_K_M"));
        }
        return Ok(Advice {
            model: name.to_owned(),
            pull: None,
            quantisation: quantisation.to_owned(),
            context,
            slots,
            kv_type,
            gpu_layers: if gpu { None } else { Some(0) },
            tier: tier_of(shape.parameters).to_owned(),
            need,
            budget_bytes: budget,
            tokens_per_second: rate(machine, shape.read_per_token()),
            reasons,
        });
    }
    let least = shape.need(Load::plain(256, 1, KV_Q8, 0));
    Err(Refusal {
        model: name.to_owned(),
        needed: least.total(),
        budget,
        why,
        next: "take a smaller quantisation or a smaller model, or free memory".to_owned(),
    })
}

/// Advice for a model of the catalogue that is not here yet: the best quantisation that leaves a useful context.
pub fn for_entry(entry: &Entry, machine: &Machine) -> Result<Advice, Refusal> {
    let (budget, why) = budget(machine);
    let weights = |bits: f64| whole(float(entry.parameters) * bits / 8.0);
    let kv = |context: u64, slots: u64| {
        entry
            .kv_bytes_per_token
            .saturating_mul(context)
            .saturating_mul(slots)
    };
    let buffers = GIB / 2;
    // Q4_K_M is the home machine's middle; better ones only where there is room for a long context too.
    let better = LADDER.iter().take(3).map(|step| (step, 32_768, SLOTS));
    let ladder = better.chain(LADDER.iter().skip(3).map(|step| (step, CONTEXT_USEFUL, 1)));
    for (&(quantisation, bits), wanted, slots) in ladder {
        let fixed = weights(bits) + buffers;
        if fixed + kv(wanted, slots) > budget {
            continue;
        }
        let room = budget.saturating_sub(fixed) / entry.kv_bytes_per_token.max(1);
        let slots = if room / SLOTS >= CONTEXT_USEFUL {
            SLOTS
        } else {
            1
        };
        let context = (room / slots / 256 * 256).min(entry.context);
        let mut reasons = vec![
            why,
            format!(
                "{quantisation} takes about {} of it; all weights are resident, those of idle experts too",
                size(weights(bits))
            ),
            "estimated from the catalogue; `hearth-node advise FILE` computes it from the file"
                .to_owned(),
        ];
        if bits < 4.5 {
            reasons.push(format!("warning: {quantisation} is below Q4, where answers get visibly worse; a smaller model at Q4_K_M may be better"));
        }
        return Ok(Advice {
            model: entry.name.clone(),
            pull: Some(format!("hf:{}:{quantisation}", entry.repo)),
            quantisation: quantisation.to_owned(),
            context,
            slots,
            kv_type: "f16",
            gpu_layers: if machine.vram_free() >= 2 * GIB {
                None
            } else {
                Some(0)
            },
            tier: entry.tier.clone(),
            need: Need {
                weights: weights(bits),
                kv_cache: kv(context, slots),
                compute: buffers,
                process: 0,
            },
            budget_bytes: budget,
            tokens_per_second: rate(machine, whole(float(entry.active) * bits / 8.0)),
            reasons,
        });
    }
    Err(Refusal {
        model: entry.name.clone(),
        needed: weights(LADDER.last().map_or(3.0, |step| step.1)) + buffers + kv(CONTEXT_USEFUL, 1),
        budget,
        why,
        next: smaller(entry),
    })
}

fn smaller(entry: &Entry) -> String {
    let below = entries()
        .iter()
        .take_while(|other| other.name != entry.name)
        .last();
    below.map_or_else(
        || "no model of the catalogue is smaller".to_owned(),
        |other| format!("try {}", other.name),
    )
}

/// The row of the decision matrix that this machine is, and its model.
pub fn scenario(machine: &Machine) -> (&'static str, &'static str) {
    let (budget, _why) = budget(machine);
    if machine.board.is_some() || budget < 5 * GIB {
        ("IoT and edge devices", "gemma4:e2b")
    } else if budget < 18 * GIB {
        ("laptop development", "gemma4:e4b")
    } else if machine.vram_free() >= 40 * GIB {
        ("server", "gemma4:31b")
    } else {
        ("workstation", "gemma4:26b-a4b")
    }
}

const fn tier_of(parameters: u64) -> &'static str {
    match parameters {
        0..6_000_000_000 => "fast",
        6_000_000_000..16_000_000_000 => "primary",
        _ => "heavy",
    }
}

/// Every token reads the weights once.
fn rate(machine: &Machine, bytes_per_token: u64) -> u64 {
    if machine.vram_free() >= 2 * GIB {
        return 0;
    }
    whole(float(machine.memory_bytes_per_second) * BANDWIDTH_SHARE / float(bytes_per_token.max(1)))
}

impl Advice {
    /// The section of node.toml.
    pub fn section(&self, model: &str) -> String {
        let mut text = format!(
            "[[tiers]]\ntier = \"{}\"\nmodel = {}\ncontext = {}\nslots = {}\nkv_type = \"{}\"\n",
            self.tier,
            toml::Value::String(model.to_owned()),
            self.context.max(64),
            self.slots,
            self.kv_type
        );
        if let Some(layers) = self.gpu_layers {
            let _written = writeln!(text, "gpu_layers = {layers}");
        }
        text
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut lines = vec![
            format!(
                "{} as {} in tier {}",
                self.model, self.quantisation, self.tier
            ),
            format!(
                "  context {} tokens, {} slots, cache {}",
                self.context, self.slots, self.kv_type
            ),
            format!(
                "  memory {} (weights {}, cache {}, buffers {}, program {}) of {} that may be used",
                size(self.need.total()),
                size(self.need.weights),
                size(self.need.kv_cache),
                size(self.need.compute),
                size(self.need.process),
                size(self.budget_bytes)
            ),
        ];
        if self.tokens_per_second > 0 {
            lines.push(format!(
                "  about {} tokens/s for one request, by memory bandwidth",
                self.tokens_per_second
            ));
        }
        lines.extend(self.reasons.iter().map(|reason| format!("  - {reason}")));
        if let Some(pull) = &self.pull {
            lines.push(format!("  next: hearth-node pull {pull}"));
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::super::catalogue::find;
    use super::*;

    fn machine(ram: u64, vram: u64) -> Machine {
        Machine {
            ram_total_bytes: ram * GIB,
            ram_available_bytes: ram * GIB,
            cores: 8,
            memory_bytes_per_second: 40_000_000_000,
            gpus: vec![super::super::machine::Gpu {
                name: "card".to_owned(),
                total_bytes: vram * GIB,
                free_bytes: vram * GIB,
            }],
            board: None,
        }
    }

    #[test]
    fn the_ladder_goes_down_only_as_memory_is_short_and_warns_below_four_bits() {
        let entry = find("gemma4:26b").expect("is known");
        let of = |ram| for_entry(entry, &machine(ram, 0)).map(|advice| advice.quantisation);
        assert_eq!(of(64).as_deref(), Ok("Q8_0"));
        assert_eq!(of(20).as_deref(), Ok("Q4_K_M"));
        let low = for_entry(entry, &machine(16, 0)).expect("fits as Q3");
        assert_eq!(low.quantisation, "Q3_K_M");
        assert!(
            low.reasons
                .iter()
                .any(|reason| reason.starts_with("warning"))
        );
        let refusal = for_entry(entry, &machine(8, 0))
            .expect_err("is too large")
            .to_string();
        assert!(
            refusal.contains("needs 10") && refusal.contains("try gemma4:e4b"),
            "{refusal}"
        );
    }

    #[test]
    fn the_matrix_knows_boards_laptops_workstations_and_servers() {
        let board = Machine {
            board: Some("Raspberry Pi 5".to_owned()),
            ..machine(8, 0)
        };
        assert_eq!(scenario(&board).1, "gemma4:e2b");
        assert_eq!(scenario(&machine(16, 0)).1, "gemma4:e4b");
        assert_eq!(scenario(&machine(64, 24)).1, "gemma4:26b-a4b");
        assert_eq!(scenario(&machine(128, 80)).1, "gemma4:31b");
    }
}
