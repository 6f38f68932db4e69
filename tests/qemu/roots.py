"""A root file system for containers, made of the guest's own busybox."""

from __future__ import annotations

from typing import Final

ROOT: Final = "/run/root"
#: What is in it beside a shell.
PROGRAMS: Final = (
    "sh cat dd echo false find head hostname id ip kill ls mkdir mount rm sleep stat stty tail tar true yes"
)
#: What makes it, as a command for a shell of the guest.
MAKE_ROOT: Final = f"""
set -e
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mkdir -p {ROOT}/bin {ROOT}/proc {ROOT}/dev {ROOT}/etc {ROOT}/sys {ROOT}/tmp
cp "$(readlink -f "$(which busybox)")" {ROOT}/bin/busybox
for each in {PROGRAMS}; do ln -sf busybox {ROOT}/bin/$each; done
"""
