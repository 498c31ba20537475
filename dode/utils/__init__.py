"""What all of dode uses and no mathematics is: files, optional imports, the machine, resumable optimisation."""
