# What users install: the program itself, the plugin image. Included by the Makefile.

.PHONY: install dist sbom deb deb-now test-deb image image-now image-index release FORCE

# `--version` follows the commit and objects follow the flags: each is written down, and
# what depends on it made anew when it has changed.
stamp = @mkdir -p $(@D); echo '$(1)' | cmp -s - $@ || echo '$(1)' >$@
$(BUILD)/version: FORCE
	$(call stamp,$(VERSION))
$(BUILD)/flags: FORCE
	$(call stamp,$(CC) $(CFLAGS) $(WARN) $(DEFS))
$(BUILD)/plugin/main.o $(BUILD)/hsm/main.o: $(BUILD)/version
$(OBJECTS) $(BUILD)/image/hsm/module.o $(BUILD)/image/plugin/main.o: $(BUILD)/flags

MANUAL := $(patsubst packaging/%,$(BUILD)/%,$(wildcard packaging/man/*))
all: $(MANUAL)
$(BUILD)/man/%: packaging/man/% $(BUILD)/version
	@mkdir -p $(@D)
	@sed 's/^\.Os$$/.Os spire-hsm $(firstword $(subst +, ,$(VERSION)))/' $< >$@

install: all ## into DESTDIR, PREFIX (/usr/local)
	install -D -m 755 $(BUILD)/spire-hsm-worker $(DESTDIR)$(PREFIX)/libexec/spire-hsm-worker
	install -D -m 755 $(BUILD)/spire-hsm $(DESTDIR)$(PREFIX)/libexec/spire-hsm
	install -D -m 644 examples/server.conf $(DESTDIR)$(PREFIX)/share/doc/spire-hsm/examples/server.conf
	install -D -m 644 $(BUILD)/man/spire-hsm.1 $(DESTDIR)$(PREFIX)/share/man/man1/spire-hsm.1
	install -D -m 644 $(BUILD)/man/spire-hsm.conf.5 $(DESTDIR)$(PREFIX)/share/man/man5/spire-hsm.conf.5
	@echo "plugin_checksum = \"$$(sha256sum <$(BUILD)/spire-hsm | cut -d ' ' -f 1)\""

dist: ## the source as build/spire-hsm-VERSION.tar.gz, the same bytes for the same commit
	@mkdir -p $(BUILD)
	@packaging/dist.sh $(BUILD) $(VERSION)

sbom: all ## what the programs are linked with: build/sbom.spdx.json
	@packaging/sbom.sh $(VERSION) $(BUILD)/spire-hsm >$(BUILD)/sbom.spdx.json
	@echo "sbom: $(BUILD)/sbom.spdx.json"

deb: ## a Debian package in build/deb/
	@tests/lib/deps.sh build deb
	$(again) deb-now
deb-now:
	@mkdir -p $(BUILD)
	@packaging/deb.sh $(BUILD) $(VERSION)

test-deb: ## the packages' tests, with the .deb installed into a fresh Debian
	@tests/lib/deps.sh build run test deb
	$(again) all
	@CHROOT=1 SPIRE_HSM=$(abspath $(BUILD)/spire-hsm) tests/real/packages.sh

image: ## the plugin image for Kubernetes: an OCI layout and a tar for docker in build/image/
	@tests/lib/deps.sh build image
	$(again) image-now

# The image's tree is not where a distribution has things: both programs find loader,
# libraries and, by their bare names, PKCS#11 modules below IMAGE_TREE. RPATH and not
# RUNPATH, for that is searched for what a module needs as well. They are a pair of their
# own: this front is built with the digest of this worker.
IMAGE = $(BUILD)/image
IMAGE_TREE = /opt/spire-hsm
IMAGE_LOADER = $(IMAGE_TREE)/lib/$(notdir $(shell patchelf --print-interpreter $(BUILD)/spire-hsm))
IMAGE_LINK = -Wl,--dynamic-linker=$(IMAGE_LOADER) -Wl,--disable-new-dtags -Wl,-rpath,$(IMAGE_TREE)/lib

$(IMAGE)/hsm/module.o: private DEFS += -DMODULE_FOLDER='"$(IMAGE_TREE)/lib/pkcs11"'
$(IMAGE)/plugin/main.o: private DEFS := -I$(IMAGE) $(DEFS) -DVERSION='"$(VERSION)"'
$(IMAGE)/plugin/main.o: $(IMAGE)/plugin/worker_hash.h $(BUILD)/version
$(IMAGE)/%.o: %.c | $(PROTO:=.h)
	@mkdir -p $(@D)
	$(call say,CC,$< (image))$(CC) $(CFLAGS) $(WARN) $(DEFS) -MMD -MP -c -o $@ $<

$(IMAGE)/spire-hsm-worker.debug: $(filter-out %/hsm/module.o,$(WORKER)) $(IMAGE)/hsm/module.o | $(BUILD)/spire-hsm
	$(call say,LD,$@)$(CC) $(CFLAGS) $(LDFLAGS) $(IMAGE_LINK) -o $@ $^ $(WORKER_LIBS)
$(IMAGE)/spire-hsm: $(filter-out %/plugin/main.o,$(FRONT)) $(IMAGE)/plugin/main.o
	$(call say,LD,$@)$(CC) $(CFLAGS) $(LDFLAGS) $(IMAGE_LINK) -o $@ $^ $(LIBS)

image-now: $(BUILD)/spire-hsm $(IMAGE)/spire-hsm $(IMAGE)/spire-hsm-worker
	@OBJCOPY=$(OBJCOPY) packaging/image.sh $(BUILD) $(IMAGE_TREE) $(VERSION)

image-index: ## the plugin image for amd64 and arm64 under one digest, as root: build/image-index/
	@tests/lib/deps.sh build image arm64
	$(again) image-now
	@packaging/image-arm64.sh $(BUILD) $(VERSION)
	@packaging/image-index.sh $(BUILD) $(VERSION) $(BUILD)/image $(BUILD)/image-arm64

release: ## all files of a release, from its commit, as root: build/release/; CONTRIBUTING.md has the steps
	@packaging/release.sh $(BUILD) check
	@tests/lib/deps.sh build deb image arm64
	@packaging/release.sh $(BUILD)
