# Fuzzing: with gcc and the driver beside this file, or with libFuzzer where clang is.
# Included by the Makefile.
FUZZ_SECONDS ?= 60

.PHONY: fuzz fuzz-now fuzz-llvm fuzz-llvm-now

$(BUILD)/tests/fuzz/fuzz_%: $(BUILD)/tests/fuzz/fuzz_%.o $(BUILD)/tests/fuzz/driver.o $(BUILD)/rooms.a
	$(call say,LD,$@)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS) -ldl

fuzz: ## FUZZ_SECONDS (60) of new inputs for every parser
	$(again) SAN=address,undefined BUILD=$(BUILD)/asan fuzz-now
fuzz-now: $(FUZZERS:=.fuzzed)
$(BUILD)/tests/fuzz/fuzz_%.fuzzed: $(BUILD)/tests/fuzz/fuzz_%
	@echo "  FUZZ  $*"; $< --mutate $(FUZZ_SECONDS) $$$$ tests/corpus/$*

# What it finds worth keeping stays in build/llvm/corpus, and is where it goes on next time.
# Into tests/corpus go the few that reach something new: llvm_NAME -set_cover_merge=1
# tests/corpus/NAME build/llvm/corpus/NAME
LLVM_FUZZERS := $(subst /fuzz_,/llvm_,$(FUZZERS))
$(BUILD)/tests/fuzz/llvm_%: $(BUILD)/tests/fuzz/fuzz_%.o $(BUILD)/rooms.a
	$(call say,LD,$@)$(CC) $(CFLAGS) $(LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(LIBS) -ldl

fuzz-llvm: ## the same with clang's libFuzzer, which sees what an input reaches
	@tests/lib/deps.sh build llvm
	$(again) CC=clang SAN=address,undefined,fuzzer-no-link BUILD=$(BUILD)/llvm fuzz-llvm-now
fuzz-llvm-now: $(LLVM_FUZZERS)
	@set -e; for f in $^; do n=$${f##*/llvm_}; log=$(BUILD)/corpus/$$n.log; \
	    echo "  FUZZ  $$n"; mkdir -p $(BUILD)/corpus/$$n; \
	    $$f -max_total_time=$(FUZZ_SECONDS) -max_len=16384 -use_value_profile=1 \
	        -print_final_stats=1 -artifact_prefix=$(BUILD)/corpus/$$n- \
	        $(BUILD)/corpus/$$n tests/corpus/$$n >$$log 2>&1 || { tail -n 60 $$log; exit 1; }; \
	    grep number_of_executed_units $$log; done
