#!/usr/bin/env bash
# Generates clients/go/v1 from protos/. Wants protoc 3.21, protoc-gen-go 1.28 and protoc-gen-go-grpc 1.0: Debian's
# protobuf-compiler, protoc-gen-go and protoc-gen-go-grpc. Another folder may be named to generate into.
set -euo pipefail
cd "$(dirname "$0")"
out=$(realpath "${1:-.}")
cd ../../protos
protoc -I . --go_out="$out" --go_opt=module=limbeck.dev/go/limbeck \
  --go-grpc_out="$out" --go-grpc_opt=module=limbeck.dev/go/limbeck limbeck/v1/*.proto
