"""The one port: tells whose request it is, answers it or hands it on."""
