# Loden's commands. `make` alone lists them.
#
# Needs a Rust toolchain (rust-toolchain.toml names it) and Debian 12 or newer; what else is
# missing is installed by `make deps`. Set CARGO_TARGET_DIR to build elsewhere than target/.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
# Downloaded tools and flanneld live here, whatever CARGO_TARGET_DIR is.
TOOLS := $(CURDIR)/target/tools
PEERS := $(CURDIR)/target/peers

# etcd-client compiles etcd's protocol files, so a build needs protoc and its include files.
BUILD_PACKAGES := gcc libc6-dev protobuf-compiler libprotobuf-dev
CHECK_PACKAGES := jq systemd
PERF_PACKAGES := valgrind
# libFuzzer itself is C++ and comes with its crate.
FUZZ_PACKAGES := gcc g++ libc6-dev
TEST_PACKAGES := etcd-server etcd-client nftables iproute2 iputils-ping iperf3 socat tcpdump strace \
	conntrack openssl procps util-linux kmod ethtool iptables libdevmapper1.02.1 \
	containernetworking-plugins dbus firewalld ufw network-manager bind9-dnsutils dnsmasq-base
# A namespace and an etcd are all that a simulated fleet needs.
SIM_PACKAGES := etcd-server etcd-client iproute2
# What scripts/lab.sh needs, and a Java that needs no display.
LAB_PACKAGES := etcd-server etcd-client nftables iproute2 jq procps util-linux libc-bin
JAVA_PACKAGES := default-jre-headless
# The library package: the server and its jars, without a service.
ZOOKEEPER_PACKAGES := libzookeeper-java
HDFS_PACKAGES := containernetworking-plugins iptables dnsmasq-base curl ca-certificates
# Unpacked for the lab, not installed.
DOCKER_PACKAGES := docker.io containerd runc busybox-static '?docker-cli'
# Podman and the libraries of it that others seldom need, as Debian 12 and 13 name them.
PODMAN_PACKAGES := podman conmon golang-github-containers-common '?libsubid4' '?libsubid5' \
	'?libgpgme11' '?libgpgme11t64' '?libassuan0' '?libassuan9'

CARGO_DENY_VERSION := 0.20.2
CARGO_FUZZ_VERSION := 0.13.2
FLANNEL_VERSION := v0.28.7
COREDNS_VERSION := v1.14.7
CNITOOL_VERSION := v1.3.1
# Docker publishes its module under versions of its own; the second is the release it became.
MOBY_VERSION := v2.0.0-beta.24
DOCKER29_VERSION := 29.8.0
RUNC_VERSION := v1.4.0
NETAVARK_VERSION := 2.1.0

PREFIX ?= /usr
DESTDIR ?=
CNI_BIN ?= /opt/cni/bin

.PHONY: help
help: ## List these commands
	@echo 'Usage: make COMMAND'
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: deps build-deps check-deps
deps: ## Install the Debian packages that building, testing and the demo need
	@scripts/install-deps $(BUILD_PACKAGES) $(CHECK_PACKAGES) $(TEST_PACKAGES) $(PERF_PACKAGES)
build-deps:
	@scripts/install-deps $(BUILD_PACKAGES)
check-deps:
	@scripts/install-deps $(BUILD_PACKAGES) $(CHECK_PACKAGES) $(FUZZ_PACKAGES)

# A process that lives for two milliseconds. Of these the GNU C library takes 0.7 to start, which is
# its dynamic linker (0.4) and questions to the CPU that a virtual machine answers slowly (0.3).
MUSL := $(shell uname -m)-unknown-linux-musl
define build_musl
	@if rustup --quiet target add $(MUSL); then \
		cargo build --locked --release --target $(MUSL) -p $(1) --bin $(2); \
		install -m 755 '$(TARGET)/$(MUSL)/release/$(2)' '$(TARGET)/release/$(2)'; \
	else \
		echo '$(2): this toolchain has no $(MUSL), so it is built for the GNU C library and starts more slowly'; \
		cargo build --locked --release -p $(1) --bin $(2); fi
endef

.PHONY: build release
build: build-deps ## Build everything, unoptimised
	cargo build --locked --workspace --bins
release: build-deps ## Build the two binaries to install
	cargo build --locked --release -p loden
	$(call build_musl,loden-cni,loden-cni)

.PHONY: demo
demo: deps build ## Three hosts on this machine, their containers talking (KEEP=1 leaves it running)
	@LODEN_BIN_DIR='$(TARGET)/debug' KEEP='$(KEEP)' scripts/demo.sh

.PHONY: examples example-zookeeper example-hdfs hadoop
examples: example-zookeeper example-hdfs ## Real ZooKeeper and HDFS by name on three such hosts (examples/; each alone: example-zookeeper, example-hdfs)
example-zookeeper: build
	@scripts/install-deps $(LAB_PACKAGES) $(JAVA_PACKAGES) $(ZOOKEEPER_PACKAGES)
	@LODEN_BIN_DIR='$(TARGET)/debug' KEEP='$(KEEP)' examples/zookeeper/run.sh
example-hdfs: build hadoop
	@scripts/install-deps $(LAB_PACKAGES) $(JAVA_PACKAGES) $(HDFS_PACKAGES)
	@LODEN_BIN_DIR='$(TARGET)/debug' LODEN_HADOOP_JARS='$(PEERS)/hadoop' KEEP='$(KEEP)' examples/hdfs/run.sh
hadoop: ## Fetch Hadoop's jars from Maven Central for the example
	@scripts/install-deps curl ca-certificates
	@scripts/fetch-jars '$(PEERS)/hadoop' examples/hdfs/jars.sha256

# The lab makes network namespaces, so tests run as root; cargo itself stays as you are.
ifneq ($(shell id -u),0)
HOST_TRIPLE := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
TEST_RUNNER := CARGO_TARGET_$(HOST_TRIPLE)_RUNNER='sudo -E'
endif
.PHONY: test
test: deps docker podman build ## Unit tests, property tests and lab scenarios (the lab needs root)
	$(TEST_RUNNER) cargo test --locked --workspace --no-fail-fast
.PHONY: test-docker29
test-docker29: deps docker docker29 build ## The scenarios with Docker again, with Docker 29 (needs Go)
	$(TEST_RUNNER) cargo test --locked -p loden-tests --test docker --test names_docker -- --ignored docker29

.PHONY: test-netavark
test-netavark: deps netavark build ## The plugin below a real netavark, which is Podman 5's CNI
	$(TEST_RUNNER) cargo test --locked -p loden-cni --test plugin -- --ignored real_netavark

# The process that does only what the kernel needs is built as the plugin is.
.PHONY: bench
bench: deps release peers ## Measure beside flannel, other DNS servers and the kernel itself (ONLY=cni or ONLY=control.steady or ONLY=dns; FLANNEL_CNI=flannel's plugin)
	cargo build --locked --release -p loden-bench --bin loden-bench --bin loden-bench-bare
	$(call build_musl,loden-bench-floor,loden-bench-floor)
	@$(if $(filter-out 0,$(shell id -u)),sudo -E) env LODEN_BIN_DIR='$(TARGET)/release' LODEN_BENCH_DIR='$(CURDIR)/target/bench' \
		'$(TARGET)/release/loden-bench' $(ONLY)

HOSTS ?= 1000
SCENARIO ?= all
.PHONY: sim
sim: build-deps ## Simulate HOSTS=1000 daemons on one etcd (SCENARIO=start|steady|restart|etcd-restart|etcd-kill|rolling-restart|rolling-upgrade|all)
	@scripts/install-deps $(SIM_PACKAGES)
	cargo build --locked --release -p loden-tests --bin loden-sim
	@$(if $(filter-out 0,$(shell id -u)),sudo -E) '$(TARGET)/release/loden-sim' \
		--hosts '$(HOSTS)' --scenario '$(SCENARIO)' --json '$(CURDIR)/target/bench/sim.json'

.PHONY: check
check: check-deps $(TOOLS)/bin/cargo-deny ## Format, lints, documentation, each crate alone, licences, unit hardening
	cargo fmt --all -- --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@# The fuzz targets are a workspace of their own, and must not fall behind.
	cargo fmt --manifest-path fuzz/Cargo.toml -- --check
	cargo clippy --locked --manifest-path fuzz/Cargo.toml --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps
	for crate in $$(cargo metadata --locked --no-deps --format-version 1 | jq -r '.packages[].name'); do \
		echo "cargo check -p $$crate"; cargo check --locked --quiet -p $$crate; done
	'$(TOOLS)/bin/cargo-deny' --locked check licenses bans sources
	@# The threshold is ten times the score: at most 2.0.
	systemd-analyze security --offline=true --no-pager --threshold=20 packaging/loden.service | tail -n 1

# Linked statically, so that the machine's C library is not in the counts. With CI set it also fails
# where there is nothing to compare with.
.PHONY: check-perf
check-perf: build-deps ## Count the core's instructions and allocations; fails above +5 % (RECORD=1 records them)
	@scripts/install-deps $(PERF_PACKAGES)
	@triple=$(MUSL); rustup --quiet target add $$triple || { triple=$$(rustc -vV | sed -n 's/^host: //p'); \
		echo "check-perf: this toolchain has no $(MUSL), so the counts cannot be compared with the recorded ones"; }; \
	cargo build --locked --profile counts --target $$triple -p loden-counts; \
	'$(TARGET)'/$$triple/counts/loden-counts bench/counts/recorded.txt '$(CURDIR)/target/counts' $(if $(RECORD),record)

FUZZ_SECONDS ?= 60
.PHONY: fuzz
# Without a sanitizer: the code is safe Rust, and a sanitizer would need a nightly compiler.
fuzz: $(TOOLS)/bin/cargo-fuzz ## Fuzz what CNI plugin and DNS server read, each target for FUZZ_SECONDS
	@scripts/install-deps $(FUZZ_PACKAGES)
	for target in $(patsubst fuzz/targets/%.rs,%,$(wildcard fuzz/targets/*.rs)); do \
		mkdir -p fuzz/corpus/$$target fuzz/seeds/$$target; \
		'$<' run --sanitizer none $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-dict=fuzz/dictionary -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1; done

$(TOOLS)/bin/cargo-fuzz:
	cargo install --locked --root '$(TOOLS)' --version $(CARGO_FUZZ_VERSION) cargo-fuzz

.PHONY: advisories
advisories: $(TOOLS)/bin/cargo-deny ## Look for known vulnerabilities (fetches the advisory database)
	'$(TOOLS)/bin/cargo-deny' --locked check advisories

$(TOOLS)/bin/cargo-deny:
	cargo install --locked --root '$(TOOLS)' --version $(CARGO_DENY_VERSION) cargo-deny

.PHONY: peers
peers: ## Build the real flanneld, cnitool and CoreDNS that scenarios run against (skipped without Go)
	@if [ -x '$(PEERS)/flanneld' ] && [ -x '$(PEERS)/cnitool' ] && [ -x '$(PEERS)/coredns' ]; then exit 0; fi; \
	if ! command -v go >/dev/null; then \
		echo 'peers: Go is not installed, so scenarios with a real flanneld, cnitool or CoreDNS will be skipped'; exit 0; fi; \
	export GOBIN='$(PEERS)' GOFLAGS=-mod=mod; \
	if ! [ -x '$(PEERS)/flanneld' ]; then \
		scripts/install-deps gcc libc6-dev; \
		echo 'peers: building flanneld $(FLANNEL_VERSION)'; \
		CGO_ENABLED=1 go install \
			-ldflags '-s -w -X github.com/flannel-io/flannel/pkg/version.Version=$(FLANNEL_VERSION)' \
			github.com/flannel-io/flannel@$(FLANNEL_VERSION); \
		mv '$(PEERS)/flannel' '$(PEERS)/flanneld'; fi; \
	if ! [ -x '$(PEERS)/coredns' ]; then \
		echo 'peers: building CoreDNS $(COREDNS_VERSION)'; \
		folder=$$(mktemp -d); cp scripts/coredns.go "$$folder/main.go"; \
		( cd "$$folder"; go mod init peer; go get github.com/coredns/coredns@$(COREDNS_VERSION); \
			CGO_ENABLED=0 go build -ldflags '-s -w' -o '$(PEERS)/coredns' . ) 2>"$$folder/log" || { cat "$$folder/log" >&2; exit 1; }; \
		rm -r "$$folder"; fi; \
	echo 'peers: building cnitool $(CNITOOL_VERSION)'; \
	CGO_ENABLED=0 go install -ldflags '-s -w' github.com/containernetworking/cni/cnitool@$(CNITOOL_VERSION)

.PHONY: docker podman docker29
docker: ## Fetch Debian's Docker and containerd for the lab, without installing them
	@scripts/unpack-debs '$(PEERS)/docker' $(DOCKER_PACKAGES)
podman: docker ## Fetch Debian's Podman for the lab, without installing it
	@scripts/unpack-debs '$(PEERS)/podman' $(PODMAN_PACKAGES)
# Debian's runc and docker-proxy are too old for it.
docker29: ## Build Docker 29 for the lab (needs Go)
	@if [ -x '$(PEERS)/docker29/dockerd' ] && [ -x '$(PEERS)/docker29/docker-proxy' ] && [ -x '$(PEERS)/docker29/runc' ]; then exit 0; fi; \
	command -v go >/dev/null || { echo 'docker29: Go is not installed' >&2; exit 1; }; \
	scripts/install-deps gcc libc6-dev libseccomp-dev pkg-config; \
	echo 'docker29: building Docker $(DOCKER29_VERSION)'; \
	export GOBIN='$(PEERS)/docker29' GOFLAGS=-mod=mod; \
	CGO_ENABLED=0 go install -tags 'netgo osusergo exclude_graphdriver_btrfs' \
		-ldflags '-s -w -X github.com/moby/moby/v2/dockerversion.Version=$(DOCKER29_VERSION)' \
		github.com/moby/moby/v2/cmd/dockerd@$(MOBY_VERSION) github.com/moby/moby/v2/cmd/docker-proxy@$(MOBY_VERSION); \
	CGO_ENABLED=1 go install -tags seccomp -ldflags '-s -w' github.com/opencontainers/runc@$(RUNC_VERSION)

.PHONY: netavark
netavark: build-deps ## Build netavark for the lab
	@if [ -x '$(PEERS)/netavark/bin/netavark' ]; then exit 0; fi; \
	cargo install --locked --root '$(PEERS)/netavark' --version $(NETAVARK_VERSION) --bin netavark netavark

.PHONY: install
install: ## Install what `make release` built (DESTDIR, PREFIX, CNI_BIN)
	@for f in loden loden-cni; do \
		[ -x '$(TARGET)/release/'$$f ] || { echo "install: $(TARGET)/release/$$f is missing: run 'make release' first" >&2; exit 1; }; done
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(CNI_BIN)'
	@# Beside the old file, then over it: a plugin that is running cannot be written to.
	install -m 755 '$(TARGET)/release/loden' '$(DESTDIR)$(PREFIX)/bin/.loden.new'
	mv -f '$(DESTDIR)$(PREFIX)/bin/.loden.new' '$(DESTDIR)$(PREFIX)/bin/loden'
	install -m 755 '$(TARGET)/release/loden-cni' '$(DESTDIR)$(CNI_BIN)/.loden.new'
	mv -f '$(DESTDIR)$(CNI_BIN)/.loden.new' '$(DESTDIR)$(CNI_BIN)/loden'
	install -d '$(DESTDIR)$(PREFIX)/lib/systemd/system'
	sed 's|/usr/bin/loden|$(PREFIX)/bin/loden|' packaging/loden.service > '$(DESTDIR)$(PREFIX)/lib/systemd/system/loden.service'
	chmod 644 '$(DESTDIR)$(PREFIX)/lib/systemd/system/loden.service'
	install -D -m 644 packaging/sysusers.d/loden.conf '$(DESTDIR)$(PREFIX)/lib/sysusers.d/loden.conf'
	install -D -m 644 packaging/tmpfiles.d/loden.conf '$(DESTDIR)$(PREFIX)/lib/tmpfiles.d/loden.conf'
	install -D -m 644 packaging/networkd/10-loden.network '$(DESTDIR)$(PREFIX)/lib/systemd/network/10-loden.network'
	install -D -m 644 packaging/networkd/10-loden.link '$(DESTDIR)$(PREFIX)/lib/systemd/network/10-loden.link'
	install -D -m 644 packaging/networkd/90-loden.conf '$(DESTDIR)$(PREFIX)/lib/systemd/networkd.conf.d/90-loden.conf'
	install -D -m 644 packaging/NetworkManager/90-loden.conf '$(DESTDIR)/usr/lib/NetworkManager/conf.d/90-loden.conf'
	@# These two look nowhere else, whatever the PREFIX.
	@for f in $$(cd packaging && find firewalld -type f); do \
		install -D -m 644 packaging/$$f '$(DESTDIR)'/usr/lib/$$f; done
	install -D -m 644 packaging/ufw/loden '$(DESTDIR)/etc/ufw/applications.d/loden'
	install -D -m 644 packaging/rt_protos.d/loden.conf '$(DESTDIR)/etc/iproute2/rt_protos.d/loden.conf'
	install -D -m 644 packaging/loden.toml '$(DESTDIR)$(PREFIX)/share/loden/loden.toml'
	install -d '$(DESTDIR)$(PREFIX)/share/loden/docker'
	sed 's|/usr/bin/loden|$(PREFIX)/bin/loden|' packaging/docker/loden.conf > '$(DESTDIR)$(PREFIX)/share/loden/docker/loden.conf'
	install -D -m 644 packaging/loden.service.d/iptables-legacy.conf '$(DESTDIR)$(PREFIX)/share/loden/loden.service.d/iptables-legacy.conf'
	install -D -m 644 packaging/loden.service.d/docker.conf '$(DESTDIR)$(PREFIX)/share/loden/loden.service.d/docker.conf'
	install -D -m 644 packaging/10-loden.conflist '$(DESTDIR)$(PREFIX)/share/loden/10-loden.conflist'

.PHONY: clean
clean: ## Remove everything that was built, tools and flanneld included
	cargo clean
	rm -rf target fuzz/target
