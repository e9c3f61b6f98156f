#!/usr/bin/env bash
# docs/screenshot.sh PAGE PNG: a picture of a report's head, by headless Chromium (CHROMIUM names another command).
set -euo pipefail
page=$(realpath "$1") picture=$2
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT
"${CHROMIUM:-chromium}" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars \
  --disable-background-networking --disable-component-update --disable-sync --user-data-dir="$profile" \
  --window-size=1200,1080 --screenshot="$picture" "file://$page"
