"""The nightly rebuild: a store of versions, the job that fills it, and the watcher that serves from it."""
