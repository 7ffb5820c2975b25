# How test programs are built. Included by the Makefile.
TESTS   := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/unit/*.c tests/hsm/*.c))
FUZZERS := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/fuzz/fuzz_*.c))
DUMPS   := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/support/*_dump.c))

# Each stand-in defines functions of the product or of libc anew. In the archive it would come to
# every program that calls one of them, so it is linked to those named below and to no other.
STAND_INS := clock_ahead identity_scene keymanager_token model_world scribe_room supervisor_stage supervisor_token
SUPPORT := $(patsubst %.c,$(BUILD)/%.o,$(filter-out tests/support/faulty_% %_dump.c %/raw_sign.c %/old_runtime.c %/collide.c \
               %/other_time.c $(STAND_INS:%=tests/support/%.c),$(wildcard tests/support/*.c)))

$(BUILD)/tests/support.a: $(SUPPORT)
	$(call say,AR,$@)rm -f $@; ar rcs $@ $^

$(BUILD)/tests/%: $(BUILD)/tests/%.o $(BUILD)/tests/support.a $(BUILD)/rooms.a
	$(call say,LD,$@)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LIBS) -lcmocka -ldl
$(addprefix $(BUILD)/tests/unit/,identity identity_lock): $(BUILD)/tests/support/identity_scene.o
$(addprefix $(BUILD)/tests/unit/,lane publisher scribe scribe_file svc_bundle): $(BUILD)/tests/support/clock_ahead.o
$(addprefix $(BUILD)/tests/unit/,keymanager keymanager_start): $(BUILD)/tests/support/keymanager_token.o
$(addprefix $(BUILD)/tests/unit/,scribe scribe_file): $(BUILD)/tests/support/scribe_room.o
$(BUILD)/tests/unit/model: $(BUILD)/tests/support/model_world.o
$(addprefix $(BUILD)/tests/unit/,supervisor supervisor_life supervisor_patience): \
    $(addprefix $(BUILD)/tests/support/,supervisor_stage.o supervisor_token.o)

$(BUILD)/tests/faulty.so: $(wildcard tests/support/faulty_*.c) tests/support/faulty.h
	@mkdir -p $(@D)
	$(call say,LD,$@)$(CC) $(CFLAGS) $(WARN) $(DEFS) -fPIC -shared -o $@ $(filter %.c,$^) -ldl
$(BUILD)/tests/collide.so $(BUILD)/tests/other_time.so: $(BUILD)/tests/%.so: tests/support/%.c
	@mkdir -p $(@D)
	$(call say,LD,$@)$(CC) $(CFLAGS) $(WARN) $(DEFS) -fPIC -shared -o $@ $< -ldl
$(BUILD)/tests/support/old_runtime: tests/support/old_runtime.c
	@mkdir -p $(@D)
	$(call say,LD,$@)$(CC) $(CFLAGS) $(WARN) $(DEFS) -o $@ $<
$(TESTS): | $(BUILD)/tests/faulty.so $(BUILD)/tests/collide.so $(BUILD)/tests/other_time.so \
          $(BUILD)/tests/support/old_runtime

.SECONDARY: $(SUPPORT) $(STAND_INS:%=$(BUILD)/tests/support/%.o) \
            $(addsuffix .o,$(TESTS) $(FUZZERS) $(DUMPS) $(BUILD)/tests/support/raw_sign $(BUILD)/tests/fuzz/driver)

.PHONY: soak bench
SOAK_SECONDS ?= 1800
soak: ## SOAK_SECONDS (1800) of random faults in a real SPIRE
	@tests/lib/deps.sh build run test
	$(again) all $(BUILD)/tests/faulty.so
	@SPIRE_HSM=$(abspath $(BUILD)/spire-hsm) tests/real/soak.sh $(SOAK_SECONDS)

bench: ## signing beside the bare token and a plain Go plugin, a server's SVIDs, start, memory, slow tokens: 6 minutes
	@tests/lib/deps.sh build run
	$(again) all $(BUILD)/tests/support/raw_sign $(BUILD)/tests/faulty.so
	@go -C tests/peers/rival build -o $(abspath $(BUILD)/tests/rival) .
	@go -C tests/peers run ./bench -plugin $(abspath $(BUILD)/spire-hsm) \
	    -raw $(abspath $(BUILD)/tests/support/raw_sign) -faulty $(abspath $(BUILD)/tests/faulty.so) \
	    -peer $(abspath $(BUILD)/tests/rival) -spire "$$(tests/lib/spire.sh)" $(BENCH)

.PHONY: test-fresh test-arm64 test-release
test-fresh: ## make demo and make test in a fresh Debian that has git, make, gcc and Go, as root
	@tests/lib/deps.sh deb
	@tests/real/fresh.sh

test-release: ## the last release made twice; its package installed, upgraded, purged in a bare Debian, as root
	@tests/lib/deps.sh build run deb image arm64
	@tests/real/release.sh

test-arm64: ## programs and image for arm64, and both under qemu-user; the index over two images; as root
	@tests/lib/deps.sh build run test image
	@tests/real/arm64.sh
	@tests/real/image_index.sh
	@BUILD=build tests/real/image.sh arm64
