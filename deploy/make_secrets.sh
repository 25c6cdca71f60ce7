#!/bin/sh
# make_secrets.sh [ROOT]: a Redis password for each role, where that role's container alone finds it (a volume of its
# own, ROOT/ROLE/redis_password), and Redis's file of users with their hashes (ROOT/redis/users.acl). A password is the
# operator's, if there is a file ROOT/operator/ROLE_password, else one generated the first time and kept from then on.
set -eu
umask 077

root=${1:-/run/pdq}
prefix=${PDQ_REDIS__KEY_PREFIX:-pdq}
template=$(dirname "$0")/redis_users.acl

fail() {
  echo "secrets: $1" >&2
  exit 2
}

# password ROLE: prints it, and on stderr where it is from.
password() {
  given=$root/operator/$1_password
  kept=$root/$1/redis_password
  if [ -e "$given" ]; then
    password=$(cat "$given")
    from="deploy/secrets/$1_password"
  elif [ -s "$kept" ]; then
    password=$(cat "$kept")
    from="an earlier start"
  else
    password=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    from="/dev/urandom"
  fi
  # Clients read it as a line of text and people type it.
  case $password in
    "" | *[!A-Za-z0-9._~+/=-]*)
      fail "the Redis password from $from is empty or holds other characters than A-Z a-z 0-9 . _ ~ + / = -"
      ;;
  esac
  echo "secrets: Redis password of $1 from $from" >&2
  printf '%s' "$password"
}

[ ! -e "$root/operator/redis_password" ] ||
  fail "deploy/secrets/redis_password: every role has its own now, name it api_password, prefill_password, ..."
case $prefix in
  "" | *[!A-Za-z0-9._-]*) fail "PDQ_REDIS__KEY_PREFIX = $prefix holds other characters than A-Z a-z 0-9 . _ -" ;;
esac

edits="s/@PREFIX@/{$prefix}/g"
for role in admin api prefill decode; do
  text=$(password "$role")
  printf '%s\n' "$text" >"$root/$role/redis_password.new"
  mv "$root/$role/redis_password.new" "$root/$role/redis_password"
  hash=$(printf '%s' "$text" | sha256sum)
  edits="$edits; s/@$(echo "$role" | tr a-z A-Z)@/${hash%% *}/"
done

# Redis takes one line per user and no comments.
sed -e '/^#/d' -e '/^$/d' -e "$edits" "$template" |
  awk '/^user / { if (line) print line; line = $0; next } { sub(/^ +/, ""); line = line " " $0 } END { print line }' \
    >"$root/redis/users.acl.new"
mv "$root/redis/users.acl.new" "$root/redis/users.acl"
