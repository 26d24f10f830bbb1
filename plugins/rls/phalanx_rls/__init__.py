"""RLS as a Phalanx plugin."""
