#!/bin/sh
# make_secrets.sh [ROOT]: a Redis password for each role, where that role's container alone finds it (a volume of its
# own, ROOT/ROLE/redis_password), and Redis's file of users with their hashes (ROOT/redis/users.acl). A password is the
# operator's, if there is a file ROOT/operator/ROLE_password, else one generated the first time and kept from then on.
# In the same way ROOT/workers/kv_secret, with which workers seal KV handles, of ROOT/operator/kv_secret.
set -eu
umask 077

root=${1:-/run/pdq}
prefix=${PDQ_REDIS__KEY_PREFIX:-pdq}
template=$(dirname "$0")/redis_users.acl

fail() {
  echo "secrets: $1" >&2
  exit 2
}

# keep GIVEN KEPT WHAT: keeps in KEPT what the operator gave, else what is kept, else a new one; prints it, and on stderr
# where it is from.
keep() {
  given=$root/operator/$1
  kept=$root/$2
  if [ -e "$given" ]; then
    text=$(cat "$given")
    from="deploy/secrets/$1"
  elif [ -s "$kept" ]; then
    text=$(cat "$kept")
    from="an earlier start"
  else
    text=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    from="/dev/urandom"
  fi
  # Clients read it as a line of text and people type it.
  case $text in
    "" | *[!A-Za-z0-9._~+/=-]*)
      fail "the $3 from $from is empty or holds other characters than A-Z a-z 0-9 . _ ~ + / = -"
      ;;
  esac
  printf '%s\n' "$text" >"$kept.new"
  mv "$kept.new" "$kept"
  echo "secrets: $3 from $from" >&2
  printf '%s' "$text"
}

[ ! -e "$root/operator/redis_password" ] ||
  fail "deploy/secrets/redis_password: every role has its own now, name it api_password, prefill_password, ..."
case $prefix in
  "" | *[!A-Za-z0-9._-]*) fail "PDQ_REDIS__KEY_PREFIX = $prefix holds other characters than A-Z a-z 0-9 . _ -" ;;
esac

edits="s/@PREFIX@/{$prefix}/g"
for role in admin api prefill decode batch; do
  text=$(keep "${role}_password" "$role/redis_password" "Redis password of $role")
  hash=$(printf '%s' "$text" | sha256sum)
  edits="$edits; s/@$(echo "$role" | tr a-z A-Z)@/${hash%% *}/"
done

keep kv_secret workers/kv_secret "secret of KV handles" >/dev/null

# Redis takes one line per user and no comments.
sed -e '/^#/d' -e '/^$/d' -e "$edits" "$template" |
  awk '/^user / { if (line) print line; line = $0; next } { sub(/^ +/, ""); line = line " " $0 } END { print line }' \
    >"$root/redis/users.acl.new"
mv "$root/redis/users.acl.new" "$root/redis/users.acl"
