# `make test` is all of continuous integration: it installs what is missing on Debian 12, then checks, builds and tests.

CARGO ?= cargo

.PHONY: bench build check check-dependencies demo packages reproducible setup setup-demo soak test test-all-versions test-package

# The directories of this machine are no part of what is shipped.
RELEASE = RUSTFLAGS="$$RUSTFLAGS --remap-path-prefix=$(CURDIR)=/walkeep --remap-path-prefix=$${CARGO_HOME:-$$HOME/.cargo}=/cargo" \
	$(CARGO) build --bins --release --locked

# The three programs, as they are shipped, in target/release.
build:
	$(RELEASE) --package archive-push --package archive-get --package basebackup

# The .deb and the .rpm, in target/packages.
packages:
	packaging/setup.sh packages
	$(RELEASE) --workspace
	packaging/build-packages.sh target/release target/packages

# What needs no server, quickest first.
check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

setup:
	packaging/setup.sh

# Licences, bans and sources of everything that is linked, and the known advisories where their database is at hand.
check-dependencies:
	packaging/check-dependencies.sh

# The scenario tests wait as much as they compute: one more at a time than there are processors.
test: setup check check-dependencies
	$(CARGO) build --workspace --bins --locked
	$(CARGO) test --workspace --lib --bins --locked
	$(CARGO) test --workspace --doc --locked
	RUST_TEST_THREADS=$$(($$(nproc) + 1)) $(CARGO) test --workspace --test '*' --locked

# The scenario tests against the programs as the package has them.
test-package: setup packages
	packaging/test-package.sh

# Builds twice, in different directories, and compares the packages byte by byte. Some ten minutes.
reproducible:
	packaging/setup.sh packages
	packaging/reproducible.sh

# The scenario tests again on every PostgreSQL major that can be had here.
test-all-versions:
	packaging/setup.sh versions
	packaging/test-all-versions.sh

# Ten minutes of load with everything failing at random, then 50 backups of a changing server; WALKEEP_SOAK sets the
# seconds, WALKEEP_BACKUPS the backups.
soak: setup
	WALKEEP_SOAK=$${WALKEEP_SOAK:-600} WALKEEP_BACKUPS=$${WALKEEP_BACKUPS:-50} \
		$(CARGO) test --package walkeep-tests --test main --locked -- --nocapture soak:: judges::

# How fast the programs are, beside the alternatives: a table, kept in bench/results. Some twenty minutes after the build.
bench: setup build
	WALKEEP_BINARIES=$(CURDIR)/target/release $(CARGO) bench --package walkeep-tests --bench speed --profile dev --locked

# A table is dropped and comes back, on a throwaway server. Under a minute after the build.
demo: setup-demo build
	packaging/demo.sh

setup-demo:
	packaging/setup.sh demo
