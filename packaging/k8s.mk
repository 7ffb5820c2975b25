# examples/k8s, tried. Included by the Makefile.

.PHONY: test-k8s
test-k8s: ## examples/k8s on a real Kubernetes of one node, as root: ten minutes, the first time thirty
	@tests/lib/deps.sh build run tutorial test image k8s
	$(again) image-now
	@BUILD=$(BUILD) tests/real/k8s.sh
