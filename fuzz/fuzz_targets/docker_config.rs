//! A docker config from a Secret: it is read or a named error, and no error or debug text shows a password of it.
#![no_main]

use kimup::policy::Repository;
use kimup::registry::fuzzing::docker_config;
use libfuzzer_sys::fuzz_target;

const CANARY: &str = "canary-7f3a9c";

fuzz_target!(|text: &str| {
    for legacy in [false, true] {
        for text in [text.to_owned(), text.replace("password", CANARY), text.replace(':', CANARY)] {
            match docker_config(text.as_bytes(), legacy) {
                Err(error) => assert!(!format!("{error} {error:?}").contains(CANARY), "{text}"),
                Ok(keyring) => {
                    assert_eq!(
                        docker_config(text.as_bytes(), legacy).map(|same| same.fingerprint()),
                        Ok(keyring.fingerprint())
                    );
                    for image in ["alpine", "registry.example.com:5000/team/app", "[::1]:5000/app", "a.b.c/d/e/f"] {
                        let repository = Repository::parse(image).expect("an image");
                        let found = keyring.credentials_for(&repository);
                        assert!(found.is_empty() || !keyring.is_empty());
                        assert!(!format!("{found:?} {keyring:?}").contains(CANARY), "{text}");
                    }
                }
            }
        }
    }
});
