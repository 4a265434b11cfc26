# Needs BuildKit (Docker 23 or later, Buildah, Podman) for the cache mounts.
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
# The caches outlive the build, so the binary is copied out of the target folder in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --package kimup --bin kimup && \
    cp target/release/kimup /kimup

# glibc and libgcc, plus two things that kimup reads at run time: the CA certificates (the registries' TLS) and the
# time zone database. No shell, no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /kimup /kimup
USER 65532:65532
ENTRYPOINT ["/kimup"]
