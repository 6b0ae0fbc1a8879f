"""The flows on a server's machines, installed by `pspnet deploy`, with work shared between pools."""
