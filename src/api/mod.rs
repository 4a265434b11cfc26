//! The custom resources, annotations and their validation: the only door from YAML to `policy`.
