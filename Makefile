# spire-hsm: everything is built, checked and installed from here. `make help` lists the targets.
PREFIX  ?= /usr/local
CC      ?= gcc
OBJCOPY ?= $(if $(filter %-gcc,$(CC)),$(CC:gcc=objcopy),objcopy)
BUILD   ?= build
# One spelling of one folder: objects are made anew when their flags change, and this is in them.
override BUILD := $(patsubst $(CURDIR)/%,%,$(abspath $(BUILD)))
V       ?= 0
VERSION := $(shell packaging/version.sh)

WARN = -std=c11 -Wall -Wextra -Werror -Wshadow -Wconversion -Wsign-conversion -Wstrict-prototypes \
       -Wmissing-prototypes -Wold-style-definition -Wvla -Wundef -Wwrite-strings -Wcast-qual \
       -Wformat=2 -Wnull-dereference -fno-common
MACHINE := $(shell $(CC) -dumpmachine)
BRANCHES = $(if $(filter x86_64-%,$(MACHINE)),-fcf-protection,$(if $(filter aarch64-%,$(MACHINE)),-mbranch-protection=standard))
HARDEN = -O2 -g -D_FORTIFY_SOURCE=2 -fstack-protector-strong -fPIE $(BRANCHES)
SAN     ?=
ifneq ($(SAN),)
HARDEN = -O1 -g -fno-omit-frame-pointer -fsanitize=$(SAN) -fno-sanitize-recover=all
endif
DEFS     = -D_GNU_SOURCE -I. -I$(BUILD) $(shell pkg-config --cflags p11-kit-1 2>/dev/null)
$(BUILD)/hsm/module.o: private DEFS += -DMODULE_FOLDER='"$(shell pkg-config --variable=p11_module_path p11-kit-1)"'
$(BUILD)/plugin/main.o $(BUILD)/hsm/main.o: private DEFS += -DVERSION='"$(VERSION)"'
$(BUILD)/hsm/wire/frame_build.o: private DEFS += -DFRAME_ID='"$(shell cat hsm/wire/*.[ch] hsm/base/fault.h | sha256sum | cut -c 1-30)"'
# The same program whatever the name of this folder and of the one it is built in.
CFLAGS  += $(HARDEN) -ffile-prefix-map=$(CURDIR)=. -ffile-prefix-map=$(BUILD)=build
LDFLAGS += -pie -Wl,-z,relro,-z,now -Wl,--build-id=sha1 -Wl,--as-needed
# The worker's libcrypto and jansson are its own, so that no module's can be taken for them, nor they
# for a module's.
WORKER_LIBS = -lp11-kit -l:libjansson.a -l:libcrypto.a -lpthread -ldl -Wl,--exclude-libs,ALL -Wl,--gc-sections
LIBS     = -lgrpc_unsecure -lgpr -lprotobuf-c -ljansson -lp11-kit -lcrypto -lpthread

say = $(if $(filter 1,$(V)),,@echo '  $(1)  $(2)';)

PROTO   := $(patsubst proto/%.proto,$(BUILD)/proto/%.pb-c,$(wildcard proto/*.proto))
object  = $(patsubst %.c,$(BUILD)/%.o,$(1))
SHARED  := $(call object,$(wildcard hsm/*/*.c))
WORKER  := $(SHARED) $(call object,$(wildcard hsm/*.c))
FRONT   := $(SHARED) $(call object,$(wildcard plugin/*.c plugin/*/*.c)) $(PROTO:=.o)
OBJECTS := $(sort $(WORKER) $(FRONT))
ROOMS   := $(filter-out %/main.o,$(OBJECTS))
SOURCES := $(wildcard hsm/*.[ch] hsm/*/*.[ch] plugin/*.[ch] plugin/*/*.[ch] $(foreach room,fuzz hsm support unit,tests/$(room)/*.[ch]))

.PHONY: all help deps demo tutorial test test-faults test-spire-1.15 test-long check check-asan check-tsan analyze layers format-check objects clean
all: $(BUILD)/spire-hsm $(BUILD)/spire-hsm-worker ## the plugin: build/spire-hsm and its worker (the default)

$(BUILD)/spire-hsm: $(FRONT)
	$(call say,LD,$@)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

# The front is built with the worker's digest: nothing may touch the worker behind these rules.
$(BUILD)/spire-hsm-worker.debug: $(WORKER)
	$(call say,LD,$@)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(WORKER_LIBS)
%/spire-hsm-worker: %/spire-hsm-worker.debug
	$(call say,STRIP,$@)$(if $(SAN),cp $< $@,$(OBJCOPY) --strip-all --add-gnu-debuglink=$< $< $@)
%/plugin/worker_hash.h: %/spire-hsm-worker
	@mkdir -p $(@D); sha256sum $< | sed 's/\([0-9a-f]*\) .*/#define WORKER_SHA256 "\1"/' >$@
$(BUILD)/plugin/main.o: $(BUILD)/plugin/worker_hash.h

$(BUILD)/rooms.a: $(ROOMS)
	$(call say,AR,$@)rm -f $@; ar rcs $@ $^

$(BUILD)/proto/%.pb-c.c $(BUILD)/proto/%.pb-c.h &: proto/%.proto
	@mkdir -p $(@D)
	$(call say,PROTO,$<)protoc-c --proto_path=proto --c_out=$(BUILD)/proto $<

$(BUILD)/proto/%.pb-c.o: $(BUILD)/proto/%.pb-c.c
	$(call say,CC,$<)$(CC) $(CFLAGS) -Wall -Wextra -I$(BUILD) -c -o $@ $<

$(BUILD)/%.o: %.c | $(PROTO:=.h)
	@mkdir -p $(@D)
	$(call say,CC,$<)$(CC) $(CFLAGS) $(WARN) $(DEFS) -MMD -MP -c -o $@ $<

# What is made on the way is kept. Programs are not named here: one that is missing, as the worker
# may be, would pass for a file on the way, and its front keep the digest of the one before.
.SECONDARY: $(OBJECTS) $(PROTO:=.c) $(PROTO:=.h)

-include $(wildcard $(BUILD)/*/*.d $(BUILD)/*/*/*.d)

include tests/tests.mk

# Flags come from packages that deps may only now install: hence a make within make.
again = @+$(MAKE) --no-print-directory

deps: ## installs what building and testing need (Debian 12, apt)
	@tests/lib/deps.sh

demo: ## the whole chain with a real SPIRE, told line by line
tutorial: ## the AWS tutorial with its keys in a token: SPIRE, MinIO in AWS's place, the aws client
demo tutorial:
	@tests/lib/deps.sh build run $(filter tutorial,$@)
	$(again) all
	@tests/real/$@.sh

test: ## every test, from unit to the real SPIRE and every fault the plugin survives
	@tests/lib/deps.sh build run tutorial test image deb
	$(again) all $(TESTS) $(FUZZERS) $(DUMPS)
	@BUILD=$(BUILD) tests/run

test-faults: ## of these the faults, two servers on one token and a soak; and the runbook
	@tests/lib/deps.sh build run test
	$(again) all $(TESTS)
	@BUILD=$(BUILD) tests/run ha runbook soak faults

test-spire-1.15: ## what SPIRE has a say in, on its 1.15.3; all else runs on 1.14.5
	@tests/lib/deps.sh build run tutorial test
	$(again) all
	@SPIRE_VERSION=1.15.3 BUILD=$(BUILD) tests/run runbook moving demo e2e agents static

test-long: ## the same at length: a thousand kills, 20,000 histories, half an hour of soak
	@+LONG=1 HSM_KILLS=1000 UNIT_MODEL_HISTORIES=5000 SOAK_SECONDS=$(SOAK_SECONDS) $(MAKE) --no-print-directory test

check: all $(TESTS) $(FUZZERS) $(DUMPS) ## the tests that need neither SPIRE nor apt
	@BUILD=$(BUILD) tests/run unit hsm fuzz peers

check-asan: ## check, with the address and undefined behaviour sanitizers
	$(again) SAN=address,undefined BUILD=$(BUILD)/asan check

check-tsan: ## check, with the thread sanitizer
	$(again) SAN=thread BUILD=$(BUILD)/tsan check

objects: $(OBJECTS)
analyze: ## gcc's static analyzer over all of hsm/ and plugin/
	@+CFLAGS=-fanalyzer $(MAKE) --no-print-directory BUILD=$(BUILD)/analyze objects

layers: ## which folder may know which: the table in tests/lib/layers.sh
	@tests/lib/layers.sh

format-check: ## .clang-format, gofmt; and scripts can be run
	@clang-format --dry-run -Werror $(SOURCES)
	@unformatted=$$(gofmt -l tests/peers); [ -z "$$unformatted" ] || { echo "gofmt: $$unformatted"; false; }
	@lame=$$(find tests packaging .ci -type f ! -perm -1 -exec awk '/^#!/ { print FILENAME } { nextfile }' {} +); \
	    [ -z "$$lame" ] || { echo "chmod +x $$lame"; false; }
	@echo "format: fine"

ifneq ($(filter clean,$(MAKECMDGOALS)),)
.NOTPARALLEL: # make -j clean all
endif
clean:
	rm -rf $(BUILD)

include tests/fuzz/fuzz.mk $(wildcard packaging/*.mk)

help: ## this list
	@sed -n 's/^\([a-z0-9.-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile tests/*.mk tests/fuzz/fuzz.mk packaging/*.mk | expand -t 25
