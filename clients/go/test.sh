#!/usr/bin/env bash
# Everything that must hold of the Go client, as CI runs it: in GOPATH mode, with what Debian has of Go and gRPC. Wants
#   apt-get install golang-go golang-google-grpc-dev golang-google-protobuf-dev golang-github-golang-protobuf-1-5-dev \
#     protobuf-compiler protoc-gen-go protoc-gen-go-grpc gcc libc6-dev
# and, for the scenarios, the environment of `make test` (LIMBECK_PYTHON names another interpreter) and openssl. Arguments
# go to `go test`.
set -euo pipefail
cd "$(dirname "$0")"
here=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/src/limbeck.dev/go"
ln -s "$here" "$work/src/limbeck.dev/go/limbeck"
export GO111MODULE=off GOFLAGS= GOPATH="$work:/usr/share/gocode"

unformatted=$(gofmt -l .)
[ -z "$unformatted" ] || { echo "gofmt: $unformatted" >&2; exit 1; }
mkdir "$work/again"
bash generate.sh "$work/again"
diff -r v1 "$work/again/v1" || { echo "v1 is not what generate.sh makes" >&2; exit 1; }
cd "$work/src/limbeck.dev/go/limbeck"
go vet ./...
go test -race -timeout 30m "$@" ./...
