# SPDX-License-Identifier: Apache-2.0
#
# `make help` lists the targets. Each one does the set-up that it needs.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# A Go that setup put into the tree comes first.
export PATH := $(CURDIR)/.toolchain/go/bin:$(PATH)

# One set of flags for build, vet, lint and tests, so that all of them share
# the compiled dependencies. Static always: only the race detector needs cgo
# (tools/test turns it on for the suites that say so). The version comes from
# VERSION below, not from Go's own stamping, which would make every commit's
# agent a different one.
export CGO_ENABLED := 0
export GOFLAGS := -trimpath -buildvcs=false

MODULE  := github.com/opencomputer/oc
AGENT   := internal/agentbin/bin/oc-agent
NODE    := internal/nodebin/bin/oc-node
OC      := bin/oc
VERSION = $(shell tools/stamp version)
ENGINE  = $(shell tools/stamp engine)
LDFLAGS = -s -w \
	-X $(MODULE)/internal/buildinfo.version=$(VERSION) \
	-X $(MODULE)/internal/buildinfo.engine=$(ENGINE) \
	-X gvisor.dev/gvisor/runsc/version.version=$(ENGINE)

.PHONY: help setup build demo test test-long bench lint fmt fuzz clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' Makefile

setup: ## install what is missing: Debian packages, Go, Go modules
	@tools/setup

build: setup ## build the one static binary, bin/oc
	@echo "[1/3] building the agent -> $(AGENT)"
	@go build -ldflags '-s -w' -o $(AGENT) ./cmd/oc-agent
	@echo "[2/3] building the node's program $(VERSION), $(ENGINE) -> $(NODE) (the first time: 1 to 3 minutes)"
	@go build -ldflags '$(LDFLAGS)' -o $(NODE) ./cmd/oc-node
	@echo "[3/3] building oc, with both inside -> $(OC)"
	@go build -ldflags '$(LDFLAGS)' -o $(OC) ./cmd/oc

demo: build ## checkpoint, damage, restore and fork a live sandbox
	@demo/demo.sh

test: build ## unit and end-to-end suites, with the time of each (SUITE=name for one)
	@tools/test $(SUITE)

test-long: export OC_TEST_LONG := 1
test-long: build ## the same code with larger counts, and the tests that need PostgreSQL or the base template
	@tools/test $(SUITE)

bench: build ## benchmarks beside the bare engine, as a table
	@OC_BIN=$(CURDIR)/$(OC) go run ./bench $(ARGS)
	@OC_BIN=$(CURDIR)/$(OC) go test -run '^$$' -bench . -benchtime 15x ./internal/engine/gvisor

lint: setup ## gofmt, vet, golangci-lint, shellcheck
	@tools/lint

fmt: setup ## format the Go files
	@gofmt -w $$(git ls-files -co --exclude-standard '*.go')

fuzz: setup ## each fuzz test for FUZZTIME (10s)
	@tools/fuzz $(or $(FUZZTIME),10s)

clean: ## remove what was built, and the demo's data
	@demo/demo.sh --clean
	rm -rf bin $(AGENT) $(NODE)
