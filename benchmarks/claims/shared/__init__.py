"""What every claim shares: arms and seeds, verdicts, tables and the command."""
