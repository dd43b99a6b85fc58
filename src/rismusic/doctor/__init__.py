"""The doctor: why a training does not learn. Each check measures one property and says what it means."""
