"""The first process of a VM; ``python -m uvm.agent --fd N`` is the same as an ordinary process, for tests.

That one serves what needs neither root nor a VM. It ends with its host, and takes its processes with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable

from uvm.agent.agent import Agent
from uvm.agent.refused import Refused

#: The kernel opens the console for its first process.
_CONSOLE = 2

Arrange = Callable[[Agent], object]


def main(arrange: Arrange | None = None) -> None:
    """Run the agent.

    :param arrange: changes the agent before it serves.
    """
    if os.getpid() == 1:
        agent = _in_vm()
    elif len(sys.argv) == 3 and sys.argv[1] == "--fd":
        agent = _in_process(int(sys.argv[2]))
    else:
        sys.exit("usage: python -m uvm.agent --fd N, if it is not the first process of a VM")
    if arrange is not None:
        arrange(agent)
    try:
        agent.run()
    except BaseException as error:
        agent.dying(error)
        raise


def _in_vm() -> Agent:
    from uvm.agent import boot, identity
    from uvm.agent.containers import serve_containers
    from uvm.agent.containers.cgroups import total_bytes
    from uvm.agent.resources import Resources
    from uvm.agent.shortage import Shortage
    from uvm.agent.shutdown import shut_down
    from uvm.agent.suspension import Suspension
    from uvm.agent.workload import Workload, protect_agent

    boot.mount_all()
    identity.renew()
    protect_agent()
    resources = Resources()
    fd = boot.open_port(resources.modules)
    workload = Workload(total_bytes())
    agent = Agent(fd, shut_down, resources=resources, console=_CONSOLE, start=workload.start)
    agent.children.on_failure = Shortage(agent.log.warning).look
    agent.service.resources.update(Suspension(workload.freeze, workload.thaw, identity.renew).handlers)
    serve_containers(agent, resources.networks, workload.start)
    # A request that needs one of them waits for it.
    agent.background(lambda: resources.modules.need(*boot.SOON))
    return agent


def _in_process(fd: int) -> Agent:
    def end(gracefully: bool = False) -> None:
        for process in agent.processes.running.values():
            with contextlib.suppress(Refused):
                process.signal(signal.SIGKILL)
        agent.loop.post(agent.loop.stop)

    # Its processes get it as the kernel has it, whatever a shell has done.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    agent = Agent(fd, end)
    agent.port.on_gone = end
    return agent


if __name__ == "__main__":
    main()
