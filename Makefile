# Two commands: a running fleet with real jobs, and every test. Both fetch what they need into .tools/.

.PHONY: demo test

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
