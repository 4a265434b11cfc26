//! The list of tags that the benches choose from.

/// 100,000 mixed tags in no order, the same in every run: 30 % releases, 12 % of them written with `v`, 10 % prereleases,
/// 15 % variants, 8 % dates, 8 % hashes, 12 % builds of branches, 5 % signatures.
pub fn mixed() -> Vec<String> {
    let mut random = fastrand::Rng::with_seed(4);
    (0..100_000).map(|_| tag(&mut random)).collect()
}

/// Bytes of the tags themselves.
#[allow(dead_code, reason = "each bench has its own copy of this module")]
pub fn bytes(tags: &[String]) -> usize {
    tags.iter().map(String::len).sum()
}

fn tag(random: &mut fastrand::Rng) -> String {
    let version = format!("{}.{}.{}", random.u32(0..8), random.u32(0..40), random.u32(0..60));
    let of = |random: &mut fastrand::Rng, words: &[&str]| words[random.usize(0..words.len())].to_owned();
    match random.u32(0..100) {
        0..30 => version,
        30..42 => format!("v{version}"),
        42..52 => format!("{version}-{}.{}", of(random, &["alpha", "beta", "rc"]), random.u32(0..12)),
        52..67 => {
            let variant = of(random, &["alpine", "alpine3.20", "slim", "debian-12-r5", "bookworm", "windows-ltsc2022"]);
            format!("{version}-{variant}")
        }
        67..75 => format!("20{}{:02}{:02}", random.u32(18..27), random.u32(1..13), random.u32(1..29)),
        75..79 => hex(random, 7),
        79..83 => hex(random, 40),
        83..95 => {
            let time = 1_600_000_000 + random.u32(0..150_000_000);
            format!("{}-{}-{time}", of(random, &["main", "develop", "release-2"]), hex(random, 7))
        }
        _ => format!("sha256-{}{}", hex(random, 64), of(random, &["", ".sig", ".att"])),
    }
}

fn hex(random: &mut fastrand::Rng, digits: usize) -> String {
    (0..digits).filter_map(|_| char::from_digit(random.u32(0..16), 16)).collect()
}
