# Two commands: a running fleet with real jobs, and every test. Both fetch what they need into .tools/.

.PHONY: demo test soak

CARGO ?= cargo

demo:
	scripts/setup
	$(CARGO) build
	scripts/demo

# nextest runs each test in a process of its own and stops one that hangs; without it `cargo test` runs the same tests.
test:
	scripts/setup tests
	scripts/engine
	@if $(CARGO) nextest --version >/dev/null 2>&1; then set -x; \
	    $(CARGO) nextest run --workspace --features fail-points && \
	    $(CARGO) test --workspace --features fail-points --doc; \
	else set -x; \
	    $(CARGO) test --workspace --features fail-points; \
	fi

# Faults for as long as wanted; see tests/faults/soak.rs for what else can be set (SHOAL_SOAK_RATE, _LEASE, _WORLDS, _FAULTS, _KEEP).
soak:
	scripts/setup tests
	scripts/engine
	SHOAL_SOAK_SECONDS=$(SECONDS) SHOAL_SOAK_SEED=$(SEED) SHOAL_SOAK_REPORT=$(REPORT) \
	    $(CARGO) test --features fail-points --test faults soak -- --ignored --nocapture
