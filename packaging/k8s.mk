# examples/k8s and examples/helm, tried. Included by the Makefile.

.PHONY: test-k8s test-helm
test-k8s: ## examples/k8s on a real Kubernetes of one node, as root: ten minutes, the first time thirty
	@tests/lib/deps.sh build run tutorial test image k8s
	$(again) image-now
	@BUILD=$(BUILD) tests/real/k8s.sh

test-helm: ## examples/helm with the real chart: CHART=charts/spire of a checkout of helm-charts-hardened
	@tests/lib/deps.sh build run test image
	$(again) all
	@CHART=$(CHART) SPIRE_HSM=$(abspath $(BUILD)/spire-hsm) tests/real/helm.sh
