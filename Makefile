# What a developer or a newcomer runs. The work is in scripts/ and cargo; docs/development.md explains it.
.PHONY: help setup build build-xen install demo test test-xen xen-lab bench lint
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

setup: ## install every Debian or Ubuntu package that is missing (the other targets install what they need)
	@scripts/setup

build: ## the varve command, optimised: target/release/varve
	@scripts/setup build
	@scripts/rocksdb
	cargo build --release

build-xen: ## the same with live Xen domains, on the Xen host it is to run on
	@scripts/setup build xen
	@scripts/rocksdb
	cargo build --release --features xen

install: ## what was built, with a systemd unit for gates: PREFIX=/usr/local, DESTDIR=
	install -D $(or $(CARGO_TARGET_DIR),target)/release/varve $(DESTDIR)$(or $(PREFIX),/usr/local)/bin/varve
	install -D -m 644 docs/varve-gate@.service $(DESTDIR)/etc/systemd/system/varve-gate@.service

demo: ## capture a live guest while an intruder breaks in, and find the first compromised epoch
	@scripts/setup build lab
	@scripts/rocksdb
	@scripts/demo

test: $(if $(CI),lint) ## every test: unit, property, and end to end on real guests
	@scripts/setup build lab
	@scripts/rocksdb
	@scripts/test
	cargo test --package varve-capture --test output_xen
	scripts/with-xen bookworm cargo test --package varve-capture --features xen --lib xen::

test-xen: ## the tests on a real Xen host alone (it runs under QEMU; `make test` has them too)
	@scripts/setup build lab
	@scripts/rocksdb
	@scripts/test --test varve xen::
	cargo test --package varve-capture --test output_xen

xen-lab: ## a real Xen host with a guest: runs each line of standard input in its dom0
	@scripts/setup build lab
	cargo run --release --package varve-fixtures --bin varve-lab -- xen

bench: ## the benchmarks, each against a peer as a ratio in one run
	@scripts/setup
	@scripts/rocksdb
	@scripts/bench

lint: ## shellcheck, formatting, clippy, documentation, licences of dependencies
	@scripts/setup build lab lint
	@scripts/rocksdb
	@scripts/lint
