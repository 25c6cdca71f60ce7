#!/bin/sh
# make_secrets.sh: what the manifests' Secrets are made of, as files beside them that git ignores: a password per Redis
# user, Redis's users, the seal of KV handles (../make_secrets.sh), the first API keys. What is there already is kept, so
# it may be repeated; a password or a seal that is gone is made anew, and `kubectl apply -k` then restarts who reads it.
# It runs `pdq key`; PDQ says which pdq, if not the one on PATH.
set -eu
umask 077

here=$(cd "$(dirname "$0")" && pwd)
secrets=$here/base/secrets
pdq=${PDQ:-pdq}
for part in redis api prefill decode batch admin workers keys; do mkdir -p "$secrets/$part"; done
sh "$here/../make_secrets.sh" "$secrets"

# The keys go to files and not to a log: keys/keys is what the API compares with, the others are for those who ask.
make_key() {
  [ ! -s "$secrets/keys/$1" ] || return 0
  PDQ_SECURITY__KEYS_FILE=$secrets/keys/keys "$pdq" key new "$1" --scope "$2" >"$secrets/keys/$1.new"
  printf '%s' "$(tail -n 1 "$secrets/keys/$1.new")" >"$secrets/keys/$1"
  rm "$secrets/keys/$1.new"
  echo "secrets: a key for $1 in $secrets/keys/$1" >&2
}
make_key keda monitor
make_key first-client client
make_key batch client

# Each folder reads only files below itself.
for component in redis keda batch; do mkdir -p "$here/components/$component/secrets"; done
mkdir -p "$here/components/redis/secrets/redis" "$here/components/keda/secrets/keys" \
  "$here/components/batch/secrets/batch" "$here/components/batch/secrets/keys"
cp "$secrets/redis/users.acl" "$here/components/redis/secrets/redis/users.acl"
cp "$secrets/keys/keda" "$here/components/keda/secrets/keys/keda"
cp "$secrets/batch/redis_password" "$here/components/batch/secrets/batch/redis_password"
cp "$secrets/keys/batch" "$here/components/batch/secrets/keys/batch"
