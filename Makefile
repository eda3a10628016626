# What a person types. `make run` is a mail system at your desk, `make test` shows that it works.
.DELETE_ON_ERROR:
.PHONY: all run build release test fuzz load crash-full recovery footprint bench bench-quick bench-spool check audit users install uninstall clean-run help

PREFIX  ?= /usr/local
DESTDIR ?=
CARGO   ?= cargo
PORT    ?= 2525
JOBS    ?=

PROGRAMS = master smtpd queue-manager delivery-remote delivery-local lmtp lookup auth keys resolver verify
LIBEXEC  = $(PREFIX)/libexec/postern
cargo    = $(CARGO) $(1) --locked $(if $(JOBS),-j$(JOBS))

all: build

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 12

run: build ## a whole mail system in the foreground, in run/, on 127.0.0.1:$(PORT); root is not needed
	@PORT=$(PORT) etc/desk

clean-run: ## forget what `make run` left in run/
	rm -rf run

build: ## every program, for daily work
	$(call cargo,build) --workspace --bins

release: ## every program, for use
	$(call cargo,build) --workspace --bins --release

# The system tests start the programs, so they are built first: `cargo test` alone would leave old ones.
test: build ## everything: unit, property and system tests
	@tests/install-packages
	@if [ "$$(id -u)" -eq 0 ]; then etc/users; fi
	@skipped=$$(mktemp); status=0; \
	POSTERN_SKIPPED=$$skipped POSTERN_BIN=$(CURDIR)/target/debug $(call cargo,test) --workspace || status=$$?; \
	if [ -s $$skipped ]; then sort -u $$skipped >&2; echo "SKIPPED: $$(sort -u $$skipped | wc -l) tests, see above" >&2; fi; \
	rm -f $$skipped; exit $$status

crash-full: build ## power cuts by the hundred, as root: nightly
	@tests/install-packages
	etc/users
	POSTERN_CI=1 POSTERN_CUTS=$(or $(CUTS),100) POSTERN_REPLAYS=$(or $(REPLAYS),300) \
	POSTERN_BIN=$(CURDIR)/target/debug $(call cargo,test) -p postern-tests --test power_cut --test block_replay -- \
		--nocapture --test-threads=1
	POSTERN_CI=1 POSTERN_KILLS=200 POSTERN_MESSAGES=20000 POSTERN_BIN=$(CURDIR)/target/debug \
		$(call cargo,test) -p postern-tests --test kill_storm -- --nocapture

recovery: release ## a million queued messages: when is new mail delivered, what they cost (root, 8 GB of memory)
	POSTERN_QUEUED=1000000 POSTERN_BIN=$(CURDIR)/target/release $(call cargo,test) --release -p postern-tests \
		--test recovery_speed -- --nocapture

load: release ## 10,000 idle sessions on one worker, 5,000 active ones, new ones beside 1,000 that trickle
	POSTERN_IDLE=10000 POSTERN_ACTIVE=5000 POSTERN_TRICKLING=1000 POSTERN_TRICKLE_SECONDS=20 \
	POSTERN_BIN=$(CURDIR)/target/release $(call cargo,test) --release -p postern-tests --test load -- \
		--nocapture --test-threads=1

footprint: release ## what a release costs: memory at rest, time to the first 220
	POSTERN_BIN=$(CURDIR)/target/release $(call cargo,test) --release -p postern-tests --test footprint -- \
		--nocapture --test-threads=1

bench: BENCH ?= --document
bench: release ## Postern beside Postfix (PEERS=all: and others), as root: target/bench/results.json, docs/performance.md
	@tests/install-packages postfix dovecot-lmtpd strace iproute2
	etc/users
	@$(if $(filter-out postfix none,$(PEERS)),tests/bench/unpack-peers)
	$(call cargo,build) --release -p postern-bench
	POSTERN_BIN=$(CURDIR)/target/release target/release/postern-bench $(if $(PEERS),--peers $(PEERS)) $(BENCH)

bench-quick: ## the same in three minutes, for daily work: prints the table and leaves the document alone
	@$(MAKE) bench BENCH="--quick $(BENCH)"

bench-spool: ## the spool's writer beside what the disk under DIR (default: the temporary directory) can do
	$(call cargo,run) --release -p postern-spool --example bench-spool -- $(or $(DIR),$${TMPDIR:-/tmp}) $(SECONDS)

# Edge coverage and compared values for libFuzzer; that needs no nightly compiler. ASan would (-Zsanitizer), and what
# it finds is in unsafe code, of which the targets have little.
FUZZFLAGS = --cfg fuzzing -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks -Cpasses=sancov-module \
	-Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
	-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
HOST     := $(shell $(CARGO) -vV 2>/dev/null | sed -n 's/^host: //p')

fuzz: ## libFuzzer on every target of tests/fuzz, SECONDS=n each (60); TARGETS="session proxy" for some
	RUSTFLAGS="$(FUZZFLAGS)" $(call cargo,build) --release -p postern-fuzz --target $(HOST) --target-dir target/fuzz
	@set -e; mkdir -p target/fuzz/found; for target in $(or $(TARGETS),$(notdir $(wildcard tests/fuzz/corpus/*))); do \
	mkdir -p target/fuzz/corpus/$$target; \
	FUZZ_TARGET=$$target target/fuzz/$(HOST)/release/postern-fuzz target/fuzz/corpus/$$target \
		tests/fuzz/corpus/$$target -max_total_time=$(or $(SECONDS),60) -max_len=16384 -timeout=10 \
		-rss_limit_mb=1024 -artifact_prefix=target/fuzz/found/$$target- -print_final_stats=1 -verbosity=0 \
		>target/fuzz/$$target.log 2>&1 || { tail -40 target/fuzz/$$target.log; exit 1; }; \
	echo "$$target:" $$(sed -n 's/^stat::number_of_executed_units: *\(.*\)/\1 inputs, nothing found/p' \
		target/fuzz/$$target.log); done

check: ## format, lints, documentation, manual pages
	$(CARGO) fmt --all --check
	$(call cargo,clippy) --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(call cargo,doc) --workspace --no-deps --document-private-items
	@tests/install-packages mandoc
	@if command -v mandoc >/dev/null; then mandoc -Tlint -Wwarning docs/man/*.[1-8]; \
	else echo "SKIPPED: mandoc is not installed" >&2; fi

audit: ## licences, sources and duplicates of the dependencies (needs cargo-deny)
	$(CARGO) deny --offline --locked check bans licenses sources

users: ## the system users, as root
	etc/users

install: release ## into DESTDIR/PREFIX; as root also makes the users
	install -d $(DESTDIR)$(LIBEXEC) $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/bin
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/man/man5 $(DESTDIR)$(PREFIX)/share/man/man8
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(PREFIX)/lib/sysusers.d $(DESTDIR)/etc/postern
	install -m 755 target/release/postern $(PROGRAMS:%=target/release/postern-%) $(DESTDIR)$(LIBEXEC)
	ln -sf ../libexec/postern/postern $(DESTDIR)$(PREFIX)/sbin/postern
	install -m 755 target/release/sendmail $(DESTDIR)$(PREFIX)/sbin/sendmail
	ln -sf ../sbin/sendmail $(DESTDIR)$(PREFIX)/bin/mailq
	ln -sf ../sbin/sendmail $(DESTDIR)$(PREFIX)/bin/newaliases
	install -m 644 docs/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 docs/man/*.5 $(DESTDIR)$(PREFIX)/share/man/man5
	install -m 644 docs/man/*.8 $(DESTDIR)$(PREFIX)/share/man/man8
	[ -e $(DESTDIR)/etc/postern/postern.toml ] || install -m 644 etc/postern.toml $(DESTDIR)/etc/postern
	sed 's,@PREFIX@,$(PREFIX),' etc/postern.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/postern.service
	install -m 644 etc/postern.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/postern.conf
	@if [ "$$(id -u)" -eq 0 ] && [ -z "$(DESTDIR)" ]; then \
		etc/users; chgrp postern-drop $(PREFIX)/sbin/sendmail; chmod 2755 $(PREFIX)/sbin/sendmail; \
	else echo "To do as root: etc/users; chgrp postern-drop and chmod 2755 $(PREFIX)/sbin/sendmail"; fi

uninstall: ## what install put there; configuration, spool and users stay
	rm -rf $(DESTDIR)$(LIBEXEC)
	rm -f $(DESTDIR)$(PREFIX)/sbin/postern $(DESTDIR)$(PREFIX)/sbin/sendmail \
		$(DESTDIR)$(PREFIX)/bin/mailq $(DESTDIR)$(PREFIX)/bin/newaliases \
		$(DESTDIR)$(PREFIX)/lib/systemd/system/postern.service $(DESTDIR)$(PREFIX)/lib/sysusers.d/postern.conf
	for page in docs/man/*.[1-8]; do \
		rm -f "$(DESTDIR)$(PREFIX)/share/man/man$${page##*.}/$${page##*/}"; done
