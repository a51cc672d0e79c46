"""`python -m experiments`: see `experiments.commands`."""

from lacuna.cli.interrupt import leave_at_once

if __name__ == "__main__":
    leave_at_once()  # before all that takes time to import
    from experiments.commands import main

    main()
