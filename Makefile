# `make test` is all of continuous integration: it installs what is missing on Debian 12, then checks, builds and tests.

CARGO ?= cargo

.PHONY: build check demo setup setup-demo test test-all-versions

# The three programs, as they are shipped, in target/release.
build:
	$(CARGO) build --workspace --bins --release --locked

# What needs no server, quickest first.
check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

setup:
	packaging/setup.sh

test: setup check
	$(CARGO) build --workspace --bins --locked
	$(CARGO) test --workspace --lib --bins --locked
	$(CARGO) test --workspace --doc --locked
	$(CARGO) test --workspace --test '*' --locked

# The scenario tests again on every PostgreSQL major that can be had here.
test-all-versions:
	packaging/setup.sh versions
	packaging/test-all-versions.sh

# A table is dropped and comes back, on a throwaway server. Under a minute after the build.
demo: setup-demo build
	packaging/demo.sh

setup-demo:
	packaging/setup.sh demo
