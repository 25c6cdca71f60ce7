#!/bin/sh
# Puts the Redis password where the other services find it (the `secrets` volume): the operator's, if there is a file
# deploy/secrets/redis_password, else one generated the first time and kept from then on.
set -eu
umask 077

given=/run/operator-secrets/redis_password
kept=/run/pdq/redis_password

if [ -e "$given" ]; then
  password=$(cat "$given")
  where="deploy/secrets/redis_password"
elif [ -s "$kept" ]; then
  password=$(cat "$kept")
  where="an earlier start"
else
  password=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
  where="/dev/urandom"
fi

# It ends up in a line of a Redis configuration file, in which blanks, quotes and line ends mean something.
case $password in
  "" | *[!A-Za-z0-9._~+/=-]*)
    echo "secrets: the Redis password from $where is empty or holds other characters than A-Z a-z 0-9 . _ ~ + / = -" >&2
    exit 2
    ;;
esac

printf '%s\n' "$password" >"$kept.new"
printf 'requirepass %s\n' "$password" >/run/pdq/redis.conf.new
mv "$kept.new" "$kept"
mv /run/pdq/redis.conf.new /run/pdq/redis.conf
echo "secrets: Redis password from $where"
