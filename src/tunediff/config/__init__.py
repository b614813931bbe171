"""What a run is asked for: settings, their check, derived values, the estimate. Nothing here imports torch."""
