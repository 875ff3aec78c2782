#!/usr/bin/env bash
# Make (or remove) two soft RoCE devices, rxe0 and rxe1, on the ends of a veth pair, 10.77.0.1 and 10.77.0.2.
# usage: hw/softroce.sh [remove]     needs root, a kernel with rdma_rxe and veth, iproute2
set -euo pipefail

if [[ ${1:-} == remove ]]; then
  for device in rxe0 rxe1; do rdma link delete "$device" 2>/dev/null || true; done
  ip link delete nova-rxe0 2>/dev/null || true
  exit 0
fi
[[ $EUID == 0 ]] || { echo "softroce: needs root" >&2; exit 1; }
for module in veth rdma_rxe ib_uverbs rdma_ucm; do
  modprobe "$module" 2>/dev/null || { echo "softroce: no kernel module $module for $(uname -r)" >&2; exit 1; }
done
ip link show nova-rxe0 >/dev/null 2>&1 || ip link add nova-rxe0 type veth peer name nova-rxe1
for end in 0 1; do
  name=nova-rxe$end
  # Both ends are in one namespace, since rxe knows no other: what comes from an address of this machine is no forgery.
  for setting in accept_local=1 rp_filter=0 arp_ignore=1; do echo "${setting#*=}" >"/proc/sys/net/ipv4/conf/$name/${setting%=*}"; done
  ip address replace "10.77.0.$((end + 1))/24" dev "$name"
  ip link set "$name" mtu 4200 up
  rdma link show "rxe$end/1" >/dev/null 2>&1 || rdma link add "rxe$end" type rxe netdev "$name"
done
echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
# A port is active once its interface has its addresses, which takes the kernel a moment.
for _ in $(seq 100); do
  [[ $(cat /sys/class/infiniband/rxe{0,1}/ports/1/state) == *ACTIVE*ACTIVE* ]] && exit 0
  sleep 0.1
done
echo "softroce: the ports did not become active" >&2
exit 1
