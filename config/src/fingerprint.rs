//! A node's identity in words that two people can compare over the telephone. Pure; keeps no secret: a node's name says the same in digits.

use crate::ids::NodeId;

/// Words of a fingerprint: 48 bits. Somebody who wants his machine taken for another one must make 2^47 identity keys while that one waits.
pub const WORDS: usize = 6;

/// The words of a node's name, which is the beginning of the SHA-256 of its identity key: the same on both sides. `None`: not the name of
/// a node.
pub fn words(node: &NodeId) -> Option<String> {
    let digits = node.as_str().strip_prefix("node_")?;
    if digits.len() != 16 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let bits = u64::from_str_radix(digits, 16).ok()?;
    let words = bits.to_be_bytes().into_iter().take(WORDS);
    let words: Vec<&str> = words
        .filter_map(|byte| LIST.get(usize::from(byte)).copied())
        .collect();
    Some(words.join(" "))
}

/// One word a byte, in the order of the alphabet: short, spoken differently, harmless.
#[rustfmt::skip]
const LIST: [&str; 256] = [
    "acid", "acorn", "actor", "album", "alley", "amber", "angel", "ankle", "apple", "apron", "arch", "arena",
    "arrow", "atlas", "attic", "autumn", "bacon", "badge", "bagel", "baker", "bamboo", "banjo", "barn", "basil",
    "basin", "beach", "beacon", "beard", "berry", "birch", "bison", "blade", "blanket", "bloom", "boat", "bonfire",
    "boot", "bottle", "brass", "bread", "brick", "bridge", "broom", "brush", "bucket", "buffalo", "butter", "button",
    "cabin", "cactus", "camel", "camera", "candle", "canoe", "carbon", "carpet", "carrot", "castle", "cedar", "cello",
    "chalk", "cherry", "chess", "chimney", "cider", "circus", "clay", "clock", "cloud", "clover", "cobra", "cocoa",
    "comet", "copper", "cotton", "couch", "crane", "cricket", "crown", "crystal", "cube", "dagger", "daisy", "dance",
    "deer", "delta", "denim", "desert", "diamond", "dinner", "dolphin", "donkey", "dragon", "drum", "eagle", "earth",
    "echo", "elbow", "ember", "engine", "falcon", "feather", "fern", "fiddle", "finger", "flame", "flute", "forest",
    "fossil", "fox", "galaxy", "garden", "garlic", "ginger", "glacier", "goat", "granite", "grape", "gravel", "guitar",
    "hammer", "harbor", "harp", "hazel", "helmet", "heron", "hill", "honey", "horse", "igloo", "indigo", "iron",
    "island", "ivy", "jacket", "jaguar", "jelly", "jewel", "jungle", "kayak", "kettle", "kite", "kiwi", "koala",
    "ladder", "lagoon", "lamp", "lantern", "lentil", "leopard", "lily", "lime", "lion", "lizard", "lobster", "magnet",
    "mango", "maple", "marble", "meadow", "melon", "meteor", "mint", "mirror", "moss", "mountain", "muffin", "mustard",
    "napkin", "needle", "nest", "noodle", "nutmeg", "oasis", "ocean", "olive", "onion", "opal", "orbit", "orchid",
    "otter", "owl", "oyster", "paddle", "panda", "papaya", "parrot", "pasta", "peach", "pearl", "pebble", "pencil",
    "pepper", "piano", "pigeon", "pillow", "pirate", "planet", "plum", "pocket", "pony", "puzzle", "quartz", "quilt",
    "rabbit", "radar", "raven", "ribbon", "river", "rocket", "rose", "ruby", "saddle", "saffron", "salmon", "sandal",
    "saturn", "scarf", "shadow", "shark", "shell", "silver", "sketch", "spider", "spoon", "spruce", "stone", "storm",
    "sugar", "sunset", "swan", "tango", "temple", "thunder", "tiger", "timber", "tomato", "torch", "tulip", "tunnel",
    "turtle", "umbrella", "valley", "vanilla", "velvet", "violet", "volcano", "waffle", "walnut", "willow", "window", "winter",
    "wizard", "wolf", "yarn", "zebra",
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_words_differ_and_are_short() {
        let set: BTreeSet<&str> = LIST.into_iter().collect();
        assert_eq!(set.len(), LIST.len());
        assert!(LIST.iter().all(|word| (3..=8).contains(&word.len())));
        assert!(LIST.is_sorted());
    }

    #[test]
    fn a_name_has_six_words_and_every_digit_of_the_first_twelve_counts() {
        let words_of = |text: &str| words(&NodeId::new(text));
        let first = words_of("node_00ff10a0b0c0d0e0").unwrap();
        assert_eq!(first.split(' ').count(), WORDS);
        assert!(first.starts_with("acid zebra"), "{first}");
        assert_ne!(words_of("node_00ff10a0b0c1d0e0").unwrap(), first);
        for odd in [
            "",
            "node_",
            "node_1",
            "cloud",
            "node_00ff10a0b0c0d0e0f",
            "node_+0ff10a0b0c0d0e0",
        ] {
            assert_eq!(words_of(odd), None, "{odd}");
        }
    }
}
