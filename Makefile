# spire-hsm: everything is built, checked and installed from here. `make help` lists the targets.
PREFIX  ?= /usr/local
CC      ?= gcc
BUILD   ?= build
V       ?= 0
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

WARN = -std=c11 -Wall -Wextra -Werror -Wshadow -Wconversion -Wsign-conversion -Wstrict-prototypes \
       -Wmissing-prototypes -Wold-style-definition -Wvla -Wundef -Wwrite-strings -Wcast-qual \
       -Wformat=2 -Wnull-dereference -fno-common
HARDEN = -O2 -g -D_FORTIFY_SOURCE=2 -fstack-protector-strong -fPIE -fcf-protection
SAN     ?=
ifneq ($(SAN),)
HARDEN = -O1 -g -fno-omit-frame-pointer -fsanitize=$(SAN) -fno-sanitize-recover=all
endif
DEFS     = -D_GNU_SOURCE -I$(BUILD) $(shell pkg-config --cflags p11-kit-1 2>/dev/null)
$(BUILD)/plugin/main.o: DEFS += -DVERSION='"$(VERSION)"'
CFLAGS  += $(HARDEN)
LDFLAGS += -pie -Wl,-z,relro,-z,now -Wl,--build-id=sha1 -Wl,--as-needed
LIBS     = -lgrpc_unsecure -lgpr -lprotobuf-c -ljansson -lp11-kit -lcrypto -lpthread

Q = $(if $(filter 1,$(V)),,@)
say = $(if $(filter 1,$(V)),,@echo '  $(1)  $(2)';)

PROTO   := $(patsubst proto/%.proto,$(BUILD)/proto/%.pb-c,$(wildcard proto/*.proto))
OBJECTS := $(patsubst %.c,$(BUILD)/%.o,$(wildcard hsm/*.c plugin/*.c)) $(PROTO:=.o)
ROOMS   := $(filter-out $(BUILD)/plugin/main.o,$(OBJECTS))
TESTS   := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/unit_*.c tests/hsm_*.c))

.PHONY: all help clean install check layers format-check
all: $(BUILD)/spire-hsm

$(BUILD)/spire-hsm: $(OBJECTS)
	$(call say,LD,$@)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

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

$(BUILD)/tests/%: $(BUILD)/tests/%.o $(BUILD)/rooms.a
	$(call say,LD,$@)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $< $(BUILD)/rooms.a $(LIBS) -lcmocka -ldl

# headers made from proto/ are kept although only objects ask for them
.SECONDARY: $(PROTO:=.c) $(PROTO:=.h)

-include $(wildcard $(BUILD)/*/*.d)

clean:
	rm -rf build
