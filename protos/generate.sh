#!/usr/bin/env bash
# Generates engine/limbeck/v1 and engine/limbeck/internal/v1 from protos/. Wants grpcio-tools==1.71.2 in an environment of
# its own (PYTHON names its interpreter): the output of that release loads under protobuf 5 to 7, newer output does not.
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-../engine}
${PYTHON:-python} -m grpc_tools.protoc -I . --python_out="$out" --pyi_out="$out" limbeck/v1/*.proto limbeck/internal/v1/*.proto
${PYTHON:-python} -m grpc_tools.protoc -I . --grpc_python_out="$out" limbeck/v1/*_service.proto
touch "$out/limbeck/v1/__init__.py" "$out/limbeck/internal/__init__.py" "$out/limbeck/internal/v1/__init__.py"
