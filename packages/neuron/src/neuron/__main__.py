# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m neuron` is the `neuron` command."""

from neuron.command import main

if __name__ == "__main__":
    main(prog_name="neuron")
