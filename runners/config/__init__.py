"""From YAML to a checked, typed run: nodes, sweep files, grids, identity and help."""
